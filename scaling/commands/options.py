"""The flags of each verb of the `isoflop` command, beside --config."""

from collections.abc import Callable

from absl import flags

CHECKPOINT = ("checkpoint", "", "Folder of a run, or the checkpoints/ in it.")
FLAGS: dict[str, tuple[tuple[str, bool | str | int | float | list, str], ...]] = {
  # verb: its flags, (name, default, help)
  "train": (
    ("coordinator", "", "HOST:PORT of the first of several processes; Slurm and TPUs need none."),
    ("processes", 0, "How many processes train this model together."),
    ("process", -1, "Which of them this is, from 0."),
  ),
  "plan": (
    ("devices", 1, "Imagined devices that train one model together."),
    ("device_memory", "", "Of each of them, as 80GiB, 80GB or 24e9: says what fits."),
    (
      "target",
      "",
      "Compiles all programs for these devices, as h100, h100:2x8, v5e:2x4: what would they need?",
    ),
    ("next", False, "Prints which cells would tell most, beside those of the workdir's sweep."),
    ("next_flops", "", "What they may cost together: 1e12, or 0.5PFs-days; as its largest cell."),
  ),
  "sweep": (
    ("adaptive", False, "Spends config.sweep.adaptive_flops on the cells that tell most."),
  ),
  "fit": (
    ("runs", "", "A .csv, .jsonl or .parquet file of runs, or a sweep's folder; else the workdir."),
    ("columns", "", "Its column names, as N=params,D=tokens,loss=val_loss."),
    ("where", [], "A condition that every run meets, as 'D/N > 5'; may be given several times."),
    ("exclude", [], "A condition that no run meets, as 'loss > 4'; may be given several times."),
    ("target_flops", "", "Asks for the best model of this compute: 1e21, or 0.5PFs-days."),
    ("target_loss", 0.0, "Asks for the least compute that reaches this loss."),
    ("inference_tokens", 0.0, "Asks for the cheapest model that will serve so many tokens."),
    ("compare_forms", False, "Holds other forms against the law, by held-out error: a minute."),
    ("max_tokens", 0.0, "Asks for the best model if there are only so many unique tokens."),
  ),
  "bench": (
    ("sizes", "", "Models as width/layers or width/layers/heads: 64/2,128/4; else the config's."),
    ("families", "", "decoder,encoder,encoder_decoder, or some of them; else the config's."),
    ("dtypes", "", "float32,bfloat16, or one: operands of products; else the config's."),
    ("tokens", 0, "Of text in a step, rounded down to whole sequences; 0: the config's batch."),
    (
      "vary",
      [],
      "A FIELD=VALUE to measure beside, as model.flash=False; several times if need be.",
    ),
    ("rounds", 20, "Turns that each model and each product takes."),
    (
      "growth",
      "",
      "Measures how cost grows instead: batch,size,depth,devices,processes,pack,cells.",
    ),
  ),
  "sample": (
    CHECKPOINT,
    ("prompt", [], "Text to continue or fill in; may be given several times."),
    ("num_samples", 1, "Texts for each prompt."),
    ("temperature", 0.8, "Logits are divided by it; 0: always the most probable token."),
    ("top_k", 0, "Draws from so many most probable tokens; 0: all."),
    ("top_p", 0.95, "Draws from the smallest set of tokens with this probability; 1: all."),
    ("max_new_tokens", 0, "Tokens to add at most; 0: 64, or what the context has room for."),
    ("seed", 0, "Of the draws."),
  ),
  "export": (
    CHECKPOINT,
    ("architecture", "", "gpt2 | llama | bert | t5 | t5_v1_1."),
    ("output", "", "A new folder."),
  ),
  "import": (("input", "", "Folder with config.json and model.safetensors."),),
}
DEFINE: dict[type, Callable] = {
  bool: flags.DEFINE_bool,
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  list: flags.DEFINE_multi_string,
}


def define(verb: str, values: flags.FlagValues) -> None:
  """Defines a verb's flags; verbs that name no checkpoint have a workdir."""
  own = FLAGS.get(verb, ())
  flags.DEFINE_bool("help", False, "Explains the verb.", flag_values=values)
  if CHECKPOINT not in own:
    flags.DEFINE_string("workdir", "", "Folder of the run or sweep.", flag_values=values)
  for name, default, text in own:
    DEFINE[type(default)](name, default, text, flag_values=values)
