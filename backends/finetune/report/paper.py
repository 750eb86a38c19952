"""What the paper reports, to show beside our figures; always of another model and scale than ours."""

from typing import NamedTuple

from backends.finetune.runs.records import RunRecord

#: The paper's tasks under our names. Written out, since the tables below do not change when a domain is added here.
FOUR_DOMAINS = frozenset({"Medical", "Legal", "Financial", "Code"})
FIVE_DOMAINS = FOUR_DOMAINS | {"Science"}
FICTIONAL_DOMAINS = frozenset({"Fictional-Medicine", "Fictional-Company", "Fictional-Law"})


class PaperRow(NamedTuple):
    """One condition of one of the paper's tables, as printed there.

    ``drift`` and ``advantage`` in percent, ``holdout`` in nats per token, each as (mean, sample SD or None); None where
    the paper prints nothing. ``seeds``: how many.
    """

    table: str
    model: str
    condition: str
    seeds: int
    drift: tuple[float, float | None] | None
    holdout: tuple[float, float | None] | None = None
    advantage: tuple[float, float | None] | None = None


class PaperFictional(NamedTuple):
    """Section 6.2: exact match of the first domain before and after the others, and backward transfer in nats and in
    exact match. ``condition``: ours that it is the like of; ``name``: the paper's."""

    condition: str
    name: str
    exact_match: tuple[float, float]
    transfer_nats: float
    transfer_exact_match: float


class PaperPanel(NamedTuple):
    """Table 8: right answers of ``questions`` with and without CRMA, and ``p`` as printed there."""

    name: str
    questions: int
    with_crma: int
    without_crma: int
    p: str


_MISTRAL, _TINY = "Mistral-7B", "TinyLlama-1.1B"
#: Source: paper, Table 7, five domains, seeds 0, 42 and 1234.
TABLE_7 = [
    PaperRow("Table 7", _MISTRAL, "naive", 3, (42.96, 5.5)),
    PaperRow("Table 7", _MISTRAL, "frozen", 3, (1.95, 0.64), (1.2888, None)),
    PaperRow("Table 7", _MISTRAL, "modular", 3, (-0.17, 0.17), (1.2631, None), (1.99, 0.54)),
]
#: Source: paper, Table 6, four domains; one seed.
TABLE_6 = [
    PaperRow("Table 6", _MISTRAL, "naive", 1, (351.4, None)),
    PaperRow("Table 6", _MISTRAL, "modular", 1, (-0.1, None)),
    PaperRow("Table 6", _TINY, "naive", 1, (225.3, None)),
    PaperRow("Table 6", _TINY, "modular", 1, (-0.1, None)),
]
#: Source: paper, section 6.2, TinyLlama in 4 bits, seed 42. "Plain LoRA" is NAIVE here; CRMA's fit after the first
#: phase is 25% worse in nats (1.833 against 1.372).
FICTIONAL = [
    PaperFictional("naive", "NAIVE (plain LoRA)", (0.74, 0.62), 0.182, -0.090),
    PaperFictional("modular", "MODULAR (CRMA)", (0.74, 0.78), -0.110, 0.020),
]
#: Source: paper, Table 8, Gemma-2-9B after five phases, 20 questions per domain.
TABLE_8 = [
    PaperPanel("paper, Table 8, Gemma-2-9B", 100, 98, 38, "–"),
    PaperPanel("paper, Table 8, stricter regrade", 100, 88, 53, "about 8e-8"),
]


def paper_rows(run: RunRecord) -> list[PaperRow]:
    """The paper's drifts beside which a run's belong: Table 7 for its five domains, Table 6 for its four, in any order;
    none for other tasks, and none for the protocol of the panel, which has a table of its own.
    """
    if run.protocol.startswith("gemma-five-phase"):
        return []
    return {FIVE_DOMAINS: TABLE_7, FOUR_DOMAINS: TABLE_6}.get(frozenset(run.tasks), [])


def paper_fictional(run: RunRecord) -> list[PaperFictional]:
    """Section 6.2, for a run of the three invented domains, in any order."""
    return FICTIONAL if set(run.tasks) == FICTIONAL_DOMAINS else []


def paper_panels(run: RunRecord) -> list[PaperPanel]:
    """Table 8, for a run of the five domains, in any order."""
    return TABLE_8 if set(run.tasks) == FIVE_DOMAINS else []
