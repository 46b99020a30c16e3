"""What is read from a compiled program, against programs whose FLOPs and bytes are known by hand.

Programs of this machine's CPU are compiled here; the texts of TPUs and GPUs below are in the form
in which jax 0.10.2, 0.11.2 and 0.12 print theirs, cut down to what is tested.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, ladders
from scaling.targets import catalog, executed, hlo, roofline
from train import aot, record


def compiled(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
  return executed.read(jax.jit(function).lower(*arguments).compile().as_text())


def f32(*shape):
  return shape, jnp.float32


def layers(x, w):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_a_scanned_product_counts_each_trip_and_its_own_slice():
  works = compiled(layers, f32(32, 64), f32(5, 64, 64))
  (loop,) = (work for work in works if work.kind == "loop")
  assert loop.trips == 5
  assert executed.total(works)["flops"] == 5 * 2 * 32 * 64 * 64
  # A trip copies its weights out of the stack, multiplies, and takes the tanh; and it counts.
  w, x = 4 * 64 * 64, 4 * 32 * 64
  assert executed.total(loop.body)["nbytes"] == pytest.approx(2 * w + (w + 2 * x) + 2 * x, rel=0.01)


def test_loops_in_loops_multiply():
  def thrice(x, w):
    return jax.lax.scan(lambda x, _: (layers(x, w), None), x, None, length=3)[0]

  works = compiled(thrice, f32(32, 64), f32(5, 64, 64))
  assert executed.total(works)["flops"] == 3 * 5 * 2 * 32 * 64 * 64


def test_what_a_scan_stacks_is_written_once():
  def stacked(x):
    return jax.lax.scan(lambda c, x: (c, 2.0 * x), 0.0, x)[1]

  nbytes = executed.total(compiled(stacked, f32(50, 4096)))["nbytes"]
  assert nbytes < 6 * 4 * 50 * 4096  # 50 times the stack would be 100 times as much


def test_a_look_up_touches_its_rows():
  works = compiled(lambda table, i: table[i], f32(10_000, 64), ((8,), jnp.int32))
  assert executed.total(works)["nbytes"] == pytest.approx(2 * 4 * 8 * 64, rel=0.02)


def test_batched_products():
  product = lambda q, k: jnp.einsum("bthk,bshk->bhts", q, k)  # noqa: E731
  works = compiled(product, f32(2, 16, 3, 8), f32(2, 24, 3, 8))
  assert executed.total(works)["flops"] == 2 * 2 * 3 * 16 * 24 * 8


def test_a_convolution_counts_the_products_that_are_none_of_padding():
  def convolve(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (1, 2), ((1, 1), (2, 0)), lhs_dilation=(1, 2), rhs_dilation=(2, 1)
    )

  shapes = (2, 3, 8, 9), (4, 3, 3, 2)
  products = np.sum(convolve(*(np.ones(shape, np.float32) for shape in shapes)))
  works = compiled(convolve, *(f32(*shape) for shape in shapes))
  assert executed.total(works)["flops"] == 2 * products


@pytest.mark.parametrize("scan", [False, True])
def test_an_evaluation_has_the_models_own_flops(scan):
  c = base.get_config()
  c.model.update({"width": 64, "depth": 3, "heads": 2, "scan": scan, "remat": "none"})
  c.data.seq_len, c.data.batch_size, c.data.isolate_documents = 64, 8, False
  c.train.eval_batch_size = c.data.batch_size
  c = ladders.resolve(c)
  works = executed.read(aot.lowered(c, 500)["evaluate"].compile().as_text())
  size = record.size_of(c, 500)
  exact = size.flops_per_token * size.tokens_per_step / 3
  T = c.data.seq_len  # attention's hidden half is no FLOPs of the model, and a CPU computes it
  hidden = c.data.batch_size * c.model.depth * 4 * c.model.width * (T**2 - T * (T + 1) / 2)
  assert executed.total(works)["flops"] == pytest.approx(exact + hidden, rel=1e-6)


# ------------------------------------------------------------------------------- texts of a target

TPU = """HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=8

%fused_scores (p.0: bf16[8,256,4,64], p.1: bf16[8,256,4,64]) -> f32[8,4,256,256] {
  %p.0 = bf16[8,256,4,64]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[8,256,4,64]{3,1,2,0:T(8,128)(2,1)} parameter(1)
  ROOT %c.0 = f32[8,4,256,256]{2,3,1,0:T(8,128)} convolution(%p.0, %p.1), \
window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=0b1f_0o1i->01bf
}

%start (p.2: bf16[64,256]) -> (bf16[64,256], bf16[256,256], u32[]) {
  %p.2 = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %ag.0 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=3, \
replica_groups=mesh['replica'=2,'shard'=4,'tensor'=1] {'shard'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %cc.0 = (bf16[64,256]{1,0}, bf16[256,256]{1,0}, u32[]{:S(2)}) custom-call(%ag.0), \
custom_call_target="AsyncCollectiveStart"
}

%middle (p.3: bf16[64,256], p.4: bf16[2048,256], p.5: bf16[256,256]) -> f32[2048,256] {
  %p.3 = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p.4 = bf16[2048,256]{1,0:T(8,128)(2,1)} parameter(1)
  %p.5 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(2)
  %ag.1 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%p.3), channel_id=3, \
replica_groups=mesh['replica'=2,'shard'=4,'tensor'=1] {'shard'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %c.1 = f32[2048,256]{1,0:T(8,128)} convolution(%p.4, %p.5), dim_labels=bf_io->bf
}

%done (p.6: bf16[64,256]) -> bf16[256,256] {
  %p.6 = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %ag.2 = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%p.6), channel_id=3, \
replica_groups=mesh['replica'=2,'shard'=4,'tensor'=1] {'shard'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %cc.1 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} custom-call(%ag.2), \
custom_call_target="AsyncCollectiveDone"
}

%condition (a.0: (s32[], s32[], f32[2,64])) -> pred[] {
  %a.0 = (s32[]{:T(128)}, s32[]{:T(128)}, f32[2,64]{1,0:T(2,128)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%a.0), index=0
  %n.0 = s32[]{:T(128)} get-tuple-element(%a.0), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i.0, %n.0), direction=LT
}

%body (a.1: (s32[], s32[], f32[2,64])) -> (s32[], s32[], f32[2,64]) {
  %a.1 = (s32[]{:T(128)}, s32[]{:T(128)}, /*index=2*/f32[2,64]{1,0:T(2,128)}) parameter(0)
  %x.0 = f32[2,64]{1,0:T(2,128)} get-tuple-element(%a.1), index=2
  %neg = f32[2,64]{1,0:T(2,128)} negate(%x.0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%a.1), index=0
  ROOT %t.1 = (s32[]{:T(128)S(6)}, s32[]{:T(128)S(6)}, f32[2,64]{1,0:T(2,128)}) \
tuple(%i.1, %i.1, %neg)
}

ENTRY %main (q: bf16[8,256,4,64], w: bf16[64,256], x: bf16[2048,256], z: f32[2,64]) -> f32[] {
  %q = bf16[8,256,4,64]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(1)
  %x = bf16[2048,256]{1,0:T(8,128)(2,1)} parameter(2)
  %z = f32[2,64]{1,0:T(2,128)} parameter(3)
  %zero = s32[]{:T(128)} constant(0)
  %seven = s32[]{:T(128)} constant(7)
  %copy.7 = s32[]{:T(128)S(6)} copy(%seven)
  %cs = (bf16[64,256]{1,0:T(8,128)(2,1)S(1)}, bf16[64,256]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%w)
  %scores = f32[8,4,256,256]{2,3,1,0:T(8,128)} fusion(%q, %q), kind=kOutput, calls=%fused_scores
  %cd = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%cs)
  %ags = (bf16[64,256]{1,0}, bf16[256,256]{1,0}, u32[]{:S(2)}) fusion(%cd), kind=kCustom, \
calls=%start
  %w.0 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %y = f32[2048,256]{1,0:T(8,128)S(1)} fusion(%cd, %x, %w.0), kind=kCustom, calls=%middle
  %agd = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} fusion(%cd), kind=kCustom, calls=%done
  %ar = f32[2048,256]{1,0:T(8,128)S(1)} all-reduce(%y), channel_id=1, \
replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true, to_apply=%add
  %t.0 = (s32[]{:T(128)}, s32[]{:T(128)S(6)}, f32[2,64]{1,0:T(2,128)}) tuple(%zero, %copy.7, %z)
  ROOT %loop = (s32[]{:T(128)}, s32[]{:T(128)}, f32[2,64]{1,0:T(2,128)}) while(%t.0), \
condition=%condition, body=%body
}
"""


def by_name(works):
  return {work.name: work for work in works if work.kind != "done"}


@pytest.fixture(scope="module")
def tpu():
  return by_name(executed.read(TPU, tpu=True))


@pytest.fixture(scope="module")
def gpu():
  return by_name(executed.read(GPU))


def test_a_tpus_attention_scores_and_loop(tpu):
  """Rows of a batch lie on dilated axes: one product of each window is not of zeros."""
  assert tpu["scores"].flops == {"bfloat16": 2 * 8 * 4 * 256 * 256 * 64}
  assert tpu["loop"].trips == 7  # a constant of its condition


def test_a_tpus_tiles_are_padded_and_its_own_memory_is_free(tpu):
  q = 2 * 8 * 4 * 256 * 128  # heads of 64 in tiles of 128
  assert tpu["scores"].nbytes == 2 * q + 4 * 8 * 4 * 256 * 256
  assert (tpu["cs"].kind, tpu["cs"].is_async) == ("copy", True)
  assert tpu["cs"].nbytes == 2 * 64 * 256  # read, and written on the chip
  assert tpu["y"].nbytes == 2 * 2048 * 256
  assert tpu["loop"].body[0].nbytes == 2 * 4 * 2 * 128


def test_a_tpus_collective_is_begun_pushed_on_and_ended():
  works = executed.read(TPU, tpu=True)
  (begun,) = (work for work in works if work.kind == "all-gather")
  assert (begun.payload, begun.dtype, begun.group) == (2 * 256 * 256, "bf16", (0, 1, 2, 3))
  assert begun.is_async
  pushed = by_name(works)["y"]
  assert pushed.flops == {"bfloat16": 2 * 2048 * 256 * 256}
  (end,) = (i for i, x in enumerate(works) if (x.kind, x.name) == ("done", begun.name))
  assert works.index(begun) < works.index(pushed) < end


GPU = """HloModule jit_step, is_scheduled=true, num_partitions=2

%nested (p.0: bf16[2048,256], p.1: bf16[256,768]) -> f32[2048,768] {
  %p.0 = bf16[2048,256]{1,0} parameter(0)
  %p.1 = bf16[256,768]{1,0} parameter(1)
  ROOT %dot = f32[2048,768]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, backend_config={"sizes":["16"]}
}

%update (p.2: f32[12,2048,768], p.3: f32[2048,768], p.4: s32[]) -> f32[12,2048,768] {
  %p.2 = f32[12,2048,768]{2,1,0} parameter(0)
  %p.3 = f32[2048,768]{1,0} parameter(1)
  %p.4 = s32[] parameter(2)
  %b.0 = f32[1,2048,768]{2,1,0} bitcast(%p.3)
  %zero = s32[] constant(0)
  ROOT %dus = f32[12,2048,768]{2,1,0} dynamic-update-slice(%p.2, %b.0, %p.4, %zero, %zero)
}

%body (a.0: (s32[], f32[12,2048,768], bf16[2048,256], bf16[256,768])) -> (s32[]) {
  %a.0 = (s32[], f32[12,2048,768]{2,1,0}, bf16[2048,256]{1,0}, bf16[256,768]{1,0}) parameter(0)
  %i.0 = s32[] get-tuple-element(%a.0), index=0
  %stack = f32[12,2048,768]{2,1,0} get-tuple-element(%a.0), index=1
  %x = bf16[2048,256]{1,0} get-tuple-element(%a.0), index=2
  %w = bf16[256,768]{1,0} get-tuple-element(%a.0), index=3
  %gemm = f32[2048,768]{1,0} fusion(%x, %w), kind=kCustom, calls=%nested, backend_config=\
{"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %put = f32[12,2048,768]{2,1,0} fusion(%stack, %gemm, %i.0), kind=kLoop, calls=%update
  ROOT %t.0 = (s32[], f32[12,2048,768]{2,1,0}, bf16[2048,256]{1,0}, bf16[256,768]{1,0}) \
tuple(%i.0, %put, %x, %w)
}

ENTRY %main (q: bf16[8,256,4,64], k: bf16[8,256,4,64], t: (s32[])) -> f32[] {
  %q = bf16[8,256,4,64]{3,2,1,0} parameter(0)
  %k = bf16[8,256,4,64]{3,2,1,0} parameter(1)
  %t = (s32[], f32[12,2048,768]{2,1,0}, bf16[2048,256]{1,0}, bf16[256,768]{1,0}) parameter(2)
  %forward = (bf16[8,4,256,64]{3,1,2,0}, f32[8,4,256]{2,1,0}, u8[64]{0}) \
custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"cudnn_fmha_backend_config": {"mask_type": "CAUSAL"}}
  %softmax = f32[8,4,256]{2,1,0} get-tuple-element(%forward), index=1
  %out = bf16[8,256,4,64]{3,2,1,0} get-tuple-element(%forward), index=0
  %backward = (bf16[8,4,256,64]{3,1,2,0}, u8[0]{0}) \
custom-call(%q, %k, %k, %softmax, %out, /*index=5*/%out), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={"cudnn_fmha_backend_config": {"mask_type": "NO_MASK"}}
  %flat = f32[2048,256]{1,0} bitcast(%q)
  %lt = (f32[2048,2048]{1,0}, s8[4194304]{0}) custom-call(%flat, %flat), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %exact = f32[2048,2048]{1,0} dot(%flat, %flat), lhs_contracting_dims={1}, \
rhs_contracting_dims={1}, operand_precision={highest,highest}
  %rs = ((f32[256,256]{1,0}, f32[64]{0}), (f32[128,256]{1,0}, f32[32]{0})) \
reduce-scatter-start(%grads, %gains), channel_id=5, replica_groups={{0,1}}, dimensions={0}, \
to_apply=%add
  %loop = (s32[], f32[12,2048,768]{2,1,0}, bf16[2048,256]{1,0}, bf16[256,768]{1,0}) while(%t), \
condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"},"known_init_step":{}}
  %rsd = (f32[128,256]{1,0}, f32[32]{0}) reduce-scatter-done(%rs)
  %grads = f32[256,256]{1,0} parameter(3)
  ROOT %gains = f32[64]{0} parameter(4)
}
"""


def test_cudnns_attention_is_two_products_forward_and_five_back(gpu):
  product = 2 * 8 * 4 * 256 * 64  # of a query with one key
  assert gpu["forward"].flops == {"bfloat16": 2 * product * 257 / 2}
  assert gpu["backward"].flops == {"bfloat16": 5 * product * 256}
  q = 2 * 8 * 256 * 4 * 64
  assert gpu["forward"].nbytes == 4 * q + 4 * 8 * 4 * 256  # without its workspace


def test_a_gpus_products_in_their_forms(gpu):
  assert gpu["lt"].flops == {"tensorfloat32": 2 * 2048 * 2048 * 256}
  assert gpu["exact"].flops == {"float32": 2 * 2048 * 2048 * 256}
  (gemm, put) = gpu["loop"].body
  assert gemm.flops == {"bfloat16": 2 * 2048 * 256 * 768}
  assert gemm.nbytes == 2 * (2048 * 256 + 256 * 768) + 4 * 2048 * 768
  assert put.nbytes == 2 * 4 * 2048 * 768 + 4  # not the stack
  assert gpu["loop"].trips == 12


def test_a_collective_of_many_arrays_is_one(gpu):
  sent = gpu["rs"]
  assert (sent.kind, sent.is_async) == ("reduce-scatter", True)
  assert (sent.payload, sent.dtype, sent.group) == (4 * (256 * 256 + 64), "f32", (0, 1))


@pytest.mark.parametrize(
  ("written", "group"),
  [
    ("{{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3)),
    ("[2,4]<=[8]", (0, 1, 2, 3)),
    ("[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("mesh['replica'=2,'shard'=4,'tensor'=1] {'replica'}", (0, 4)),
    ("mesh['replica'=2,'shard'=4,'tensor'=1] {'replica','shard'}", tuple(range(8))),
    ("{}", tuple(range(8))),
  ],
)
def test_groups_in_all_their_forms(written, group):
  line = f"%x = f32[] all-reduce(%y), replica_groups={written}, to_apply=%add"
  module = hlo.parse(TPU)
  assert module.group(hlo.parse(f"ENTRY %m () -> f32[] {{\n  {line}\n}}").entry.root) == group
  assert module.devices == 8


CALL = """ENTRY %m (q: bf16[8,4,1024,64]) -> bf16[8,4,1024,64] {{
  %q = bf16{shape}{{3,2,1,0}} parameter(0)
  %blocks = s8[1,2,2]{{2,1,0}} parameter(1)
  %positions = s32[1024,128]{{1,0}} parameter(2)
  ROOT %{name} = bf16[8,4,1024,64]{{3,2,1,0}} custom-call({operands}), \
custom_call_target="{target}", metadata={{op_name="jit(step)/{name}/pallas_call"}}, \
backend_config={config}
}}"""


def kernel_flops(name, operands, target="tpu_custom_call", config="{}", causal=False):
  shape = "[8,4,1024,64]" if target == "tpu_custom_call" else "[8,1024,4,64]"
  text = CALL.format(shape=shape, name=name, operands=operands, target=target, config=config)
  return executed.total(executed.read(text, True, causal))["flops"]


def test_a_pallas_kernels_flops_are_as_it_states_or_those_of_jaxs_attention():
  stated = '{"custom_call_config":{"cost_estimate":{"flops":"1234","bytes_accessed":"1"}}}'
  assert kernel_flops("kernel.1", "%q, %q, %q", config=stated) == 1234
  assert kernel_flops("kernel.1", "%q, %q, %q") == 0
  product = 2 * 8 * 4 * 1024 * 1024 * 64
  for name, products in {"mha_fwd": 2, "mha_dq": 3, "mha_dkv": 4}.items():
    name = f"splash_{name}_no_residuals"
    assert kernel_flops(name, "%q, %q, %q") == products * product
    # A causal mask: of two by two blocks, three.
    assert kernel_flops(name, "%blocks, %q, %q, %q, %positions") == products * product * 3 / 4
  triton = "__gpu$xla.gpu.triton"
  for name, products in {"mha_forward": 2, "mha_backward": 7, "mha_preprocess_backward": 0}.items():
    assert kernel_flops(name, "%q, %q, %q", triton) == products * product
    assert kernel_flops(name, "%q, %q, %q", triton, causal=True) == products * product * 9 / 16


def test_attributes_may_have_several_lines():
  text = TPU.replace("kind=kOutput,", 'kind=kOutput, frontend_attributes={kernel={\n"a":"{"\n}},')
  assert executed.read(text, tpu=True) == executed.read(TPU, tpu=True)


# ------------------------------------------------------------------------ what is compiled for them


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:2", "h100:2x2"])
def test_layers_in_shards_for_a_target(name):
  """Each of 6 layers is gathered, multiplied, and its gradient scattered, in bfloat16."""
  target = catalog.parse(name)
  try:
    catalog.check_installed(target)
  except ValueError as error:
    pytest.skip(str(error))
  mesh = jax.make_mesh((target.devices,), ("shard",), devices=catalog.devices(target))
  rows = jax.sharding.NamedSharding(mesh, jax.P("shard"))
  columns = jax.sharding.NamedSharding(mesh, jax.P(None, "shard"))

  def loss(w_LDD, x_BD):
    def layer(x_BD, w_DD):
      return jnp.tanh(x_BD @ jax.lax.all_gather(w_DD, "shard", axis=0, tiled=True)), None

    return jnp.sum(jax.lax.scan(layer, x_BD, w_LDD)[0].astype(jnp.float32))

  step = jax.shard_map(
    jax.grad(loss),
    mesh=mesh,
    in_specs=(jax.P(None, "shard"), jax.P("shard")),
    out_specs=jax.P(None, "shard"),
    check_vma=False,
  )
  L, D, B = 6, 512, 1024
  shapes = (
    jax.ShapeDtypeStruct((L, D, D), jnp.bfloat16, sharding=columns),
    jax.ShapeDtypeStruct((B * target.devices, D), jnp.bfloat16, sharding=rows),
  )
  compiled = jax.jit(step).lower(*shapes).compile()
  works = executed.read(compiled.as_text(), target.tpu)
  sums = executed.total(works)
  assert sums["flops"] in {n * 2 * B * D * D for n in (3 * L - 1, 3 * L)}  # x has no gradient
  # Each is gathered for the forward pass, and kept or gathered again for the backward pass.
  assert sums["all-gather"] in {n * 2 * D * D for n in (L, 2 * L - 1, 2 * L)}
  assert sums["reduce-scatter"] == pytest.approx(L * 2 * D * D, rel=0.01)
  assert roofline.times(works, target).total > 17 * 2 * B * D * D / target.chip.peaks["bfloat16"]
