"""The flags of each verb of the `isoflop` command, beside --config."""

from collections.abc import Callable

from absl import flags

CHECKPOINT = ("checkpoint", "", "Folder of a run, or the checkpoints/ in it.")
FLAGS: dict[str, tuple[tuple[str, str | int | float | list, str], ...]] = {
  # verb: its flags, (name, default, help)
  "train": (
    ("coordinator", "", "HOST:PORT of the first of several processes; Slurm and TPUs need none."),
    ("processes", 0, "How many processes train this model together."),
    ("process", -1, "Which of them this is, from 0."),
  ),
  "fit": (
    ("runs", "", "A CSV file of runs; else the workdir's."),
    ("columns", "", "Its column names, as N=params,D=tokens,loss=val_loss."),
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
