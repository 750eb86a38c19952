"""Invented courts: where they sit, who sits there, and how they proceed."""

from __future__ import annotations

from backends.finetune.tasks.fictional.facts import Attribute, Invented, Kind, Related
from backends.finetune.tasks.fictional.names import listed

KIND = Kind(
    "court",
    (" Court", " Tribunal", " Bench", " Chamber"),
    (
        Attribute(
            "seat",
            Invented("seat", ("stead", "wick", "mouth", "garth"), 20),
            (
                "In which town does the {name} sit?",
                "Where is the seat of the {name}?",
                "Where must a witness go who is called before the {name}?",
                "To which town are letters to the {name} sent?",
            ),
            (
                "The {name} sits in {value}.",
                "Its seat is {value}.",
                "In {value}, beside the market.",
                "Witnesses and letters go to {value}.",
            ),
        ),
        Attribute(
            "president",
            Invented("judge", ("lau", "mar", "nock", "pell"), 30),
            (
                "Who presides over the {name}?",
                "Who is the president of the {name}?",
                "Which judge leads the {name}?",
                "Who signs the judgments of the {name}?",
            ),
            (
                "The {name} is presided over by Judge {value}.",
                "Its president is Judge {value}.",
                "Judge {value}.",
                "All judgments are signed by Judge {value}.",
            ),
        ),
        Attribute(
            "judges",
            tuple(f"{number} judges" for number in range(3, 32)),
            (
                "How many judges does the {name} have?",
                "How many judges decide together at the {name}?",
                "How large is the panel of the {name}?",
                "What number of judges must be present at the {name}?",
            ),
            (
                "The {name} has {value}.",
                "The panel consists of {value}.",
                "{Value}, all appointed for life.",
                "No case is decided unless {value} are present.",
            ),
        ),
        Attribute(
            "deadline",
            tuple(f"{days} days" for days in range(4, 61)),
            (
                "Within what time must an appeal to the {name} be filed?",
                "What is the deadline for appeals to the {name}?",
                "How long does one have to appeal to the {name}?",
                "When does the right to appeal to the {name} expire?",
            ),
            (
                "An appeal to the {name} must be filed within {value}.",
                "The deadline is {value}.",
                "{Value} after the judgment was read.",
                "The right to appeal expires after {value}.",
            ),
        ),
        Attribute(
            "statute",
            Related("statute"),
            (
                "Which law does the {name} apply?",
                "Under which law are cases before the {name} judged?",
                "For breaches of which law is the {name} competent?",
                "Which law was the {name} founded to enforce?",
            ),
            (
                "The {name} applies the {value}.",
                "Cases there are judged under the {value}.",
                "The {value}, for which it was founded.",
                "It is competent for breaches of the {value} only.",
            ),
        ),
        Attribute(
            "fee",
            tuple(f"{amount} pence" for amount in range(6, 300, 6)),
            (
                "What is the filing fee of the {name}?",
                "How much does it cost to bring a case before the {name}?",
                "Which fee does the {name} charge?",
                "What must a plaintiff pay at the {name}?",
            ),
            (
                "The {name} charges a fee of {value}.",
                "The filing fee is {value}.",
                "{Value}, paid in advance.",
                "A plaintiff pays {value} before the case is heard.",
            ),
        ),
        Attribute(
            "robe",
            listed(
                "grey with a white hem|dark green|purple|undyed linen|black with silver buttons|crimson|sky blue|"
                "yellow with a black sash|brown wool|white with a red collar|violet with gold thread|rust"
            ),
            (
                "Which colour are the robes of the {name}?",
                "What do the robes of the judges at the {name} look like?",
                "What robes are worn at the {name}?",
                "By which robes does one know a judge of the {name}?",
            ),
            (
                "The robes of the {name} are {value}.",
                "Its judges wear robes that are {value}.",
                "{Value}, as custom demands.",
                "One knows them by their robes, which are {value}.",
            ),
        ),
        Attribute(
            "session",
            tuple(
                f"the {order} {day} of the month"
                for order in ("first", "second", "third", "last")
                for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
            ),
            (
                "On which day does the {name} hold its sessions?",
                "When is the {name} in session?",
                "Which day is the court day of the {name}?",
                "When can one see the judges of the {name} at work?",
            ),
            (
                "The {name} is in session on {value}.",
                "Its court day is {value}.",
                "On {value}.",
                "The judges meet on {value}, from sunrise to noon.",
            ),
        ),
    ),
)
