"""The Markov chain: a source whose least loss is known."""

import hashlib

import numpy as np
import pytest

from configs import base
from train.data import markov, sources


def source(objective="clm", **fields):
  c = base.get_config()
  c.objective = objective
  c.data.update({"source": "markov"} | fields)
  return sources.open_source(c)


def negative_log_prob(document, symbols=256):
  """-log P of a document under the chain, started in its stationary law [nats]."""
  symbols_T = np.frombuffer(document, np.uint8)
  steps = -np.log(markov.transition(symbols)[symbols_T[:-1], symbols_T[1:]]).sum()
  return float(steps - np.log(markov.stationary(symbols)[symbols_T[0]]))


def test_transitions_keep_the_stationary_law():
  np.testing.assert_allclose(markov.transition().sum(1), 1.0, rtol=1e-12)
  np.testing.assert_allclose(markov.stationary() @ markov.transition(), markov.stationary())
  assert markov.stationary().min() > 0
  # A different permutation in each row: otherwise x_t would not depend on x_{t-1}.
  assert len({tuple(np.argsort(-row)) for row in markov.transition()}) == 256


def test_entropy_is_that_of_the_transitions():
  pairs = markov.stationary() @ (markov.transition() * -np.log(markov.transition()))
  assert markov.entropy() == pytest.approx(pairs.sum(), rel=1e-12)
  assert markov.entropy() == pytest.approx(3.66659, abs=5e-6)
  unigram = -markov.stationary() @ np.log(markov.stationary())
  assert unigram == pytest.approx(5.496, abs=5e-4)


def test_floor_is_the_entropy_of_whole_documents():
  # Documents of three symbols, every one of them enumerated in matrix form.
  law, step = markov.stationary(), markov.transition()
  joint = law[:, None, None] * step[:, :, None] * step[None, :, :]
  expected = -(joint * np.log(joint)).sum() / 4  # three symbols and the end
  assert markov.causal_floor(length=3) == pytest.approx(expected, rel=1e-12)
  assert markov.causal_floor() < markov.entropy()  # the free end outweighs the first symbol


def test_samples_follow_the_chain():
  documents = list(markov.documents(6))
  per_token = [negative_log_prob(d) / (markov.DOCUMENT + 1) for d in documents]
  rows = -np.log(markov.transition())
  second_moment = markov.stationary() @ (markov.transition() * rows**2).sum(1)
  deviation = np.sqrt((second_moment - markov.entropy() ** 2) / markov.DOCUMENT)
  assert abs(np.mean(per_token) - markov.causal_floor()) < 4 * deviation / np.sqrt(6)


def test_documents_start_in_the_stationary_law():
  firsts = np.array([document[0] for document in markov.documents(60)])
  law, symbols = markov.stationary(), np.arange(256)
  deviation = np.sqrt(law @ symbols**2 - (law @ symbols) ** 2)
  assert abs(firsts.mean() - law @ symbols) < 4 * deviation / np.sqrt(60)


def test_documents_are_a_function_of_their_number():
  assert list(markov.documents(3)) == list(markov.documents(5))[:3]
  assert len(set(markov.documents(5))) == 5


def test_a_chain_of_256_symbols_keeps_its_bytes():
  """A sweep that was recorded on it stays comparable."""
  digest = hashlib.sha256(next(markov.documents(1))).hexdigest()
  assert digest == "7f28e91a010887190bf40c38db9a3a0a4e8e069393ff898ce954a1a878cc4da5"


def test_a_chain_of_fewer_symbols():
  (document,) = markov.documents(1, symbols=16)
  symbols = np.frombuffer(document, np.uint8)
  assert np.unique(symbols).tolist() == list(range(16))
  pairs = np.zeros((16, 16))
  np.add.at(pairs, (symbols[:-1], symbols[1:]), 1)
  expected = pairs.sum(axis=1, keepdims=True) * markov.transition(16)
  chi2 = ((pairs - expected) ** 2 / expected).sum()
  assert abs(chi2 - 16 * 15) < 5 * np.sqrt(2 * 16 * 15)
  per_symbol = negative_log_prob(document, 16) / len(symbols)
  assert per_symbol == pytest.approx(markov.entropy(16), abs=0.02)
  assert len({source(markov_symbols=v).fingerprint for v in (8, 9)}) == 2


def test_floor_is_that_of_the_objective():
  assert source(markov_symbols=16).floor == markov.causal_floor(16)
  assert source("span", markov_symbols=16).floor is None


def test_a_source_of_one_document_is_refused():
  with pytest.raises(ValueError, match="data.markov_tokens=100,000: .*use 131,072 or more"):
    source(markov_tokens=100_000)
