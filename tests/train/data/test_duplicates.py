"""Near copies: they stay on one side of the split, and what is on both sides is measured."""

import hashlib

import numpy as np
import pytest

from train.data import duplicates, splits

RNG = np.random.default_rng(0)
WORDS = ["".join(RNG.choice(list("abcdefghij"), 6)) for _ in range(5000)]


def text(words=400):
  return " ".join(RNG.choice(WORDS, words))


def edited(document, share):
  """Replaces a share of a document in the middle, and breaks its lines elsewhere."""
  words = document.split(" ")
  n = round(share * len(words))
  words[50 : 50 + n] = text(n).split(" ")
  return "\n  ".join(words)


def sketches(documents):
  return {hashlib.sha256(x.encode()).digest(): duplicates.sketch(x.encode()) for x in documents}


@pytest.mark.parametrize(("share", "near"), [(0.0, True), (0.15, True), (0.6, False)])
def test_near_copies_share_a_group(share, near):
  originals = [text() for _ in range(40)]
  copies = [edited(document, share) for document in originals]
  group_X = duplicates.groups([duplicates.sketch(x.encode()) for x in [*originals, *copies]])
  assert len(set(group_X[:40])) == 40
  assert np.array_equal(group_X[:40], group_X[40:]) if near else len(set(group_X)) == 80


def test_texts_shorter_than_a_window_are_near_if_they_are_equal_but_for_white_space():
  found = duplicates.groups([duplicates.sketch(x) for x in (b"a b", b" a\n b", b"a c", b"\xff")])
  assert found[0] == found[1]
  assert len(set(found)) == 3


def test_near_copies_go_to_one_side_and_the_rest_stays_where_it_was():
  plain = [text(100) for _ in range(500)]
  families = [[edited(x, 0.05 * i) for i in range(4)] for x in (text(100) for _ in range(60))]
  copies = [x for family in families for x in family]
  parts = splits.hold_out("text:x", 20.0, sketches([*plain, *copies]))
  held_out = parts["validation"]
  assert parts["train"] | held_out == set(sketches([*plain, *copies]))
  assert not parts["train"] & held_out
  for family in families:
    assert len(held_out & set(sketches(family))) in (0, 4)
  threshold = int(0.2 * 2**64)
  for digest in sketches(plain):
    assert (digest in held_out) == (int(digest.hex()[:16], 16) < threshold)
  alone = splits.hold_out("text:x", 20.0, sketches(plain))
  assert alone["validation"] == held_out & set(sketches(plain))


def test_a_corpus_of_near_copies_alone_is_split_all_the_same(capsys):
  document = text()
  corpus = sketches([edited(document, 0.01 * i) for i in range(30)])
  parts = splits.hold_out("text:x", 20.0, corpus)
  assert len(parts["validation"]) == 12
  assert "text:x: all documents are near copies" in capsys.readouterr().err


def test_a_small_corpus_holds_out_enough_documents_to_judge_by():
  corpus = sketches([text(20) for _ in range(700)])
  held_out = splits.hold_out("text:x", 5.0, corpus)["validation"]
  assert held_out == set(sorted(corpus)[:64])
  other = splits.hold_out("text:x", 5.0, corpus, seed=1)["validation"]
  assert len(other) == 64
  assert len(other & held_out) < 20  # 6 are expected by chance


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_overlap_is_the_share_of_the_held_out_text_that_is_in_the_training_text(share):
  training, new = [text(2000).encode() for _ in range(5)], text(10_000).encode()
  copied = b"\n".join(training)[: round(share * len(new))]
  held_out = [copied, new[len(copied) :]]
  assert duplicates.overlap(training, held_out) == pytest.approx(share, abs=0.02)
