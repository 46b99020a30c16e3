"""Writes a run's newest checkpoint as a Hugging Face folder.

  isoflop export --checkpoint=runs/one --architecture=gpt2 --output=exported

The folder has config.json, model.safetensors and tokenizer.json, with the special ids of the run's
objective by name: <|eos|>, [MASK], <extra_id_0>, ... A model that the architecture cannot express
is refused; configs/presets.py has configs that can be exported.
"""

from pathlib import Path

from absl import flags

from configs.errors import UsageError
from scaling.arguments import CHECKPOINT, Flag, restored_run

FLAGS: tuple[Flag, ...] = (
  CHECKPOINT,
  ("architecture", "", "gpt2 | llama | mistral | qwen3 | gpt_neox | bert | t5 | t5_v1_1."),
  ("output", "", "A new folder."),
)


def run(args: flags.FlagValues) -> None:
  if not args.architecture or not args.output:
    raise UsageError(
      "--architecture or --output is missing, as in --architecture=gpt2 --output=out"
    )
  run = restored_run(args)
  import jax
  import numpy as np
  from flax import nnx, traverse_util

  from model.huggingface import convert

  ids = {"bos_token_id": run.start, "eos_token_id": run.stop, "pad_token_id": run.start}
  if run.model.encoder and run.model.decoder:
    ids["decoder_start_token_id"] = run.start
  params = nnx.to_pure_dict(nnx.state(run.model))
  convert.export_folder(
    Path(args.output).expanduser(),
    run.config.model,
    jax.tree.map(np.asarray, traverse_util.flatten_dict(params, sep="/")),
    run.vocab_size,
    max(run.context, run.source_context),
    args.architecture,
    run.tokenizer.to_str(pretty=True) if run.tokenizer else None,
    {name: value for name, value in ids.items() if value is not None},
  )
  print(args.output)
