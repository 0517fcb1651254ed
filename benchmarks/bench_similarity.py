"""Does similarity before training say which source to fine-tune from? Its ranking against measured fine-tuning error.

    python benchmarks/bench_similarity.py [--quick]

Fixed before any result was seen: all settings below, and that `infinite_depth`, averaged over targets, is what counts.

Domains are those of the bundled data: tweets, films, products and editorials (two classes), and the languages in Latin
script of the eleven intents, where that extra is installed (the model is English, and reads other scripts letter by
letter). Every ordered pair of two domains of a data set is a source and a target. The model is all-MiniLM-L6-v2; below
its last block it is frozen, and has read each text once.

Measured: the last block, the pooler and a new head are trained on the source, then on a few labeled examples of the
target; 1 - balanced accuracy on other texts of the target, averaged over seeds, each with its own few examples, head
and order. Predicted: from the features that the pretrained model has before any training, with linear teachers of the
source and of the target and the same few examples, scores of `hf_early_ood.probes.transfer`. Beside them, what needs
no theory: `zero_shot`, 1 - balanced accuracy of the source's linear teacher on all of the target that has labels.

Spearman's correlation over the sources of a target, averaged over targets, with the t interval over targets; and over
all pairs, with the interval of Bonett & Wright (2000). Both take for independent what shares domains, so they can be
too narrow; the tables add a permutation test of the mean over targets, which does not.
Writes benchmarks/results/bench_similarity.json.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from similarity_summary import CONFIDENCE, correlations
from torch import Tensor, nn

from hf_early_ood.bundled import BUNDLED_MODEL, INTENTS_DATASET, VADER_DATASET, load_bundled
from hf_early_ood.errors import DataError
from hf_early_ood.evaluation.metrics import classification_metrics
from hf_early_ood.names import BALANCED_ACCURACY
from hf_early_ood.probes.transfer import LinearTask
from hf_early_ood.similarities import INFINITE_DEPTH, MEASURES
from hf_early_ood.tasks.sequence_classification import SequenceClassification

ZERO_SHOT = "zero_shot"
PRIMARY = INFINITE_DEPTH
LATIN = ("de", "es", "fr", "nl", "pl", "pt-BR", "ro")
BLOCK = 5  # the last of all-MiniLM-L6-v2

logger = logging.getLogger("similarity")


class Protocol(NamedTuple):
    """Everything that decides the numbers."""

    train: int = 200  # examples of a domain to train on as a source, and to take the few from as a target
    test: int = 200
    few_per_class: Mapping[str, int] = {VADER_DATASET: 16, INTENTS_DATASET: 3}
    source_updates: int = 60
    updates: int = 20
    batch: int = 16
    rate: float = 5e-4  # AdamW, constant
    seeds: tuple[int, ...] = (1, 2, 3)
    max_length: int = 40
    domains: int | None = None  # of each data set; None: all


QUICK = Protocol(train=60, test=30, source_updates=2, updates=2, seeds=(1,), max_length=12, domains=3)


class Domain(NamedTuple):
    """A domain below the last block: states (m, T, D), their mask (m, T), and labels (m,), to train on and to test."""

    states: Tensor
    mask: Tensor
    labels: Tensor
    train: list[int]
    test: list[int]


def main() -> None:
    options = parser().parse_args()
    harness.start(options)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    protocol = QUICK if options.quick else Protocol()
    begin = time.process_time()
    results = {}
    for name in (VADER_DATASET, INTENTS_DATASET):
        try:
            data = load_bundled(name)
        except DataError as error:  # an extra
            logger.warning("%s", error)
            continue
        results[name] = study(protocol, name, data)
        logger.info("%s: %s", name, results[name]["spearman"][PRIMARY])
    harness.finish(
        options,
        setting={
            "model": BUNDLED_MODEL, "trained": "last block, pooler, head", "primary": PRIMARY, "device": options.device,
            "confidence": CONFIDENCE, "quick": options.quick, **protocol._asdict(),
        },
        results={**results, "cpu_seconds": time.process_time() - begin},
    )  # fmt: skip


def parser() -> Any:
    return harness.parser(__doc__, "bench_similarity", repetitions=1)


def domains_of(name: str, data: Mapping[str, Dataset], protocol: Protocol) -> dict[str, tuple[Dataset, Dataset]]:
    """Domain -> texts to train on and to test on, drawn with one seed."""
    pairs: dict[str, tuple[Dataset, Dataset | None]] = {}
    if name == VADER_DATASET:
        pairs["tweets"] = (data["tweets/train"], data["tweets/id_test"])
        pairs |= {domain: (data[domain], None) for domain in ("movie", "amazon", "nyt")}
    else:
        pairs["en"] = (data["en/train"], data["en/id_test"])
        pairs |= {language: (data[language], None) for language in LATIN}
    found = {}
    for domain, (first, second) in list(pairs.items())[: protocol.domains]:
        first = first.shuffle(seed=0)
        size = min(protocol.train, len(first) // (2 if second is None else 1))
        rest = first.select(range(size, len(first))) if second is None else second.shuffle(seed=0)
        found[domain] = (first.select(range(size)), rest.select(range(min(protocol.test, len(rest)))))
    return found


def study(protocol: Protocol, name: str, data: Mapping[str, Dataset]) -> dict[str, Any]:
    """All pairs of the domains of one data set, predicted and measured."""
    texts = domains_of(name, data, protocol)
    label_names = next(iter(texts.values()))[0].features["label"].names
    task = SequenceClassification(max_length=protocol.max_length)
    model, tokenizer = task.load(BUNDLED_MODEL, label_names)
    model.eval()
    domains = {domain: below_last_block(model, tokenizer, pair, protocol) for domain, pair in texts.items()}
    logger.info("%s: %s read", name, ", ".join(domains))

    features = {domain: pooled(model, found, found.train) for domain, found in domains.items()}
    labels = {domain: found.labels[found.train] for domain, found in domains.items()}
    targets = {domain: LinearTask(features[domain], labels[domain], len(label_names)) for domain in domains}
    rows = {
        (domain, seed): few_examples(labels[domain], protocol.few_per_class[name], seed)
        for domain in domains
        for seed in protocol.seeds
    }

    def start(seed: int) -> Top:
        return fresh(model, len(label_names), seed)

    def fine_tuned(top: Top, target: str, seed: int) -> float:
        found = domains[target]
        few = [found.train[row] for row in rows[target, seed]]
        return error(trained(top, found, few, protocol.updates, seed, protocol), found, found.test)

    sources, in_domain = {}, {}
    for domain, found in domains.items():
        for seed in protocol.seeds:
            top = trained(start(seed), found, found.train, protocol.source_updates, seed, protocol)
            sources[domain, seed] = top
        in_domain[domain] = [error(sources[domain, seed], found, found.test) for seed in protocol.seeds]
    logger.info("%s: sources trained, errors in their own domain %s", name, in_domain)
    pairs = []
    for target, found in domains.items():
        scratch = [fine_tuned(start(seed), target, seed) for seed in protocol.seeds]
        for source in domains:
            if source != target:
                tops = {seed: copy.deepcopy(sources[source, seed]) for seed in protocol.seeds}
                before = [error(top, found, found.test) for top in tops.values()]
                pairs.append(
                    {
                        "source": source,
                        "target": target,
                        "measured": [fine_tuned(top, target, seed) for seed, top in tops.items()],
                        "from_scratch": scratch,
                        "before_fine_tuning": before,
                        "predicted": predictions(targets[target], targets[source], [rows[target, s] for s in tops]),
                    }
                )
        logger.info("%s done", target)
    return {
        "domains": {domain: {"train": len(found.train), "test": len(found.test)} for domain, found in domains.items()},
        "few": protocol.few_per_class[name] * len(label_names),
        "in_domain_error": in_domain,
        "target_teacher_explains": {domain: target.teacher.explained for domain, target in targets.items()},
        "spearman": {measure: correlations(pairs, measure) for measure in (*MEASURES, ZERO_SHOT)},
        "pairs": pairs,
    }


def predictions(target: LinearTask, source: LinearTask, samples: Sequence[Sequence[int]]) -> dict[str, float]:
    """Scores of one pair, averaged over samples of the few examples. Of the source, its own linear teacher counts."""
    scores = [target.score(source.teacher.weights, rows).scores for rows in samples]
    found = {measure: float(np.mean([score[measure] for score in scores])) for measure in MEASURES}
    guesses = source.predict(target.features)
    return found | {ZERO_SHOT: balanced_error(guesses, target.labels)}


def few_examples(labels: Tensor, per_class: int, seed: int) -> list[int]:
    """As many rows of each class, drawn without replacement."""
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=draws)
    return [row for label in labels.unique() for row in order[labels[order] == label][:per_class].tolist()]


@torch.no_grad()
def below_last_block(model: nn.Module, tokenizer: Any, pair: tuple[Dataset, Dataset], protocol: Protocol) -> Domain:
    """What the last block gets of every text, padded to one length."""
    whole = concatenate_datasets(list(pair))
    tokens = tokenizer(
        whole["text"][:], truncation=True, max_length=protocol.max_length, padding=True, return_tensors="pt"
    )
    mask = tokens["attention_mask"]
    states = torch.zeros(*mask.shape, model.config.hidden_size)
    got: list[Tensor] = []
    handle = model.bert.encoder.layer[BLOCK].register_forward_pre_hook(
        lambda module, args, kwargs: got.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    for part in mask.sum(1).argsort().split(64):  # by length
        longest = int(mask[part].sum(1).max())
        model(**{name: value[part, :longest] for name, value in tokens.items()})
        states[part, :longest] = got.pop()
    handle.remove()
    cut = len(pair[0])
    labels = torch.tensor(whole["label"][:])
    return Domain(states, mask, labels, list(range(cut)), list(range(cut, len(whole))))


class Top(nn.Module):
    """The last block, the pooler and a head."""

    def __init__(self, model: Any, head: nn.Linear) -> None:
        super().__init__()
        self.block, self.pooler = copy.deepcopy(model.bert.encoder.layer[BLOCK]), copy.deepcopy(model.bert.pooler)
        self.head = head

    def features(self, domain: Domain, rows: Sequence[int]) -> Tensor:
        mask = domain.mask[list(rows)]
        longest = int(mask.sum(1).max())
        hidden = domain.states[list(rows), :longest]
        away = (1.0 - mask[:, None, None, :longest].float()) * torch.finfo(torch.float32).min
        output = self.block(hidden, away)
        return self.pooler(output[0] if isinstance(output, tuple) else output)

    def forward(self, domain: Domain, rows: Sequence[int]) -> Tensor:
        return self.head(self.features(domain, rows))


def fresh(model: Any, num_classes: int, seed: int) -> Top:
    """The pretrained top with a new head, drawn as transformers does."""
    torch.manual_seed(seed)
    head = nn.Linear(model.config.hidden_size, num_classes)
    nn.init.normal_(head.weight, std=model.config.initializer_range)
    nn.init.zeros_(head.bias)
    return Top(model, head)


def trained(top: Top, domain: Domain, rows: Sequence[int], updates: int, seed: int, protocol: Protocol) -> Top:
    """The same network, trained on cross-entropy in place; as many batches as updates, epoch after epoch."""
    top.train()
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(top.parameters(), lr=protocol.rate)
    order: list[int] = []
    for _ in range(updates):
        while len(order) < protocol.batch:
            order += torch.randperm(len(rows)).tolist()
        batch, order = [rows[row] for row in order[: protocol.batch]], order[protocol.batch :]
        nn.functional.cross_entropy(top(domain, batch), domain.labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return top.eval()


@torch.no_grad()
def error(top: Top, domain: Domain, rows: Sequence[int]) -> float:
    """1 - balanced accuracy."""
    guesses = torch.cat([top(domain, rows[start : start + 64]).argmax(1) for start in range(0, len(rows), 64)])
    return balanced_error(guesses, domain.labels[list(rows)])


@torch.no_grad()
def pooled(model: Any, domain: Domain, rows: Sequence[int]) -> Tensor:
    """Features (m, D) of the pretrained model."""
    top = Top(model, nn.Linear(1, 1)).eval()
    return torch.cat([top.features(domain, rows[start : start + 64]) for start in range(0, len(rows), 64)])


def balanced_error(guesses: Tensor, labels: Tensor) -> float:
    return 1 - classification_metrics(labels.numpy(), guesses.numpy())[BALANCED_ACCURACY]


if __name__ == "__main__":
    sys.exit(main())
