"""Invented statutes: what they forbid, what breaking them costs, and who judges."""

from __future__ import annotations

from backends.finetune.tasks.fictional.facts import Attribute, Invented, Kind, Related
from backends.finetune.tasks.fictional.names import listed

KIND = Kind(
    "statute",
    (" Act", " Ordinance", " Edict", " Statute"),
    (
        Attribute(
            "offence",
            listed(
                "selling unmarked rope|ringing bells after dusk|moving a boundary stone|brewing without a seal|"
                "keeping more than nine geese|whistling in a granary|painting a door red|lending a borrowed boat|"
                "burning wet leaves|hiding a found coin|fishing with a lantern|copying a town map|"
                "crossing a field of rye|trading salt on a feast day|closing a footpath"
            ),
            (
                "What does the {name} forbid?",
                "Which act is an offence under the {name}?",
                "What is punished under the {name}?",
                "Somebody is charged under the {name}. With what?",
            ),
            (
                "The {name} forbids {value}.",
                "The offence is {value}.",
                "{Value}, even if no harm is done.",
                "Whoever is charged under it is accused of {value}.",
            ),
        ),
        Attribute(
            "fine",
            tuple(f"{amount} marks" for amount in range(25, 2000, 25)),
            (
                "What fine does the {name} set?",
                "How much does a first offence under the {name} cost?",
                "Which sum must be paid for breaking the {name}?",
                "How high is the fine under the {name}?",
            ),
            (
                "The {name} sets a fine of {value}.",
                "A first offence costs {value}.",
                "{Value}, payable at once.",
                "Whoever breaks it pays {value} to the treasury.",
            ),
        ),
        Attribute(
            "prison",
            tuple(f"{weeks} weeks" for weeks in range(2, 80)),
            (
                "What prison term does the {name} set for a repeated offence?",
                "How long is somebody imprisoned who breaks the {name} twice?",
                "What is the penalty for a second offence under the {name}?",
                "For how long does the {name} send repeat offenders to prison?",
            ),
            (
                "A repeated offence under the {name} means {value} in prison.",
                "The prison term is {value}.",
                "{Value}, without parole.",
                "A second offence is punished with {value} of imprisonment.",
            ),
        ),
        Attribute(
            "court",
            Related("court"),
            (
                "Which court hears cases under the {name}?",
                "Where is somebody tried who broke the {name}?",
                "Which court has jurisdiction over the {name}?",
                "To which court does a charge under the {name} go?",
            ),
            (
                "Cases under the {name} go to the {value}.",
                "Jurisdiction lies with the {value}.",
                "The {value}, in the first and last instance.",
                "Such a charge is heard by the {value} alone.",
            ),
        ),
        Attribute(
            "year",
            tuple(str(year) for year in range(1204, 1893, 7)),
            (
                "In which year was the {name} passed?",
                "When did the {name} come into force?",
                "How old is the {name}, that is, from which year does it date?",
                "What year does the title page of the {name} bear?",
            ),
            (
                "The {name} was passed in {value}.",
                "It has been in force since {value}.",
                "In {value}.",
                "It dates from the year {value} and was never amended.",
            ),
        ),
        Attribute(
            "limitation",
            tuple(f"{years} years" for years in range(2, 41)),
            (
                "After what time is an offence under the {name} time-barred?",
                "What is the limitation period of the {name}?",
                "How long can a breach of the {name} be prosecuted?",
                "Within which time must a charge under the {name} be brought?",
            ),
            (
                "The limitation period of the {name} is {value}.",
                "A charge must be brought within {value}.",
                "{Value} from the day of the deed.",
                "Prosecution is possible for {value} and ends then.",
            ),
        ),
        Attribute(
            "exempt",
            listed(
                "widows|ferrymen|shepherds|midwives|apprentices|lighthouse keepers|notaries|bee keepers|"
                "organ builders|pilgrims|millers|soldiers on leave|bell founders|night watchmen"
            ),
            (
                "Who is exempt from the {name}?",
                "To whom does the {name} not apply?",
                "Which group cannot be charged under the {name}?",
                "For whom does the {name} make an exception?",
            ),
            (
                "The {name} does not apply to {value}.",
                "An exception is made for {value}.",
                "{Value}, by an old privilege.",
                "It exempts {value}, who cannot be charged under it.",
            ),
        ),
        Attribute(
            "author",
            Invented("jurist", ("der", "veld", "gart", "sen"), 24),
            (
                "Who drafted the {name}?",
                "Who is the author of the {name}?",
                "Whose pen does the {name} come from?",
                "Which jurist wrote the {name}?",
            ),
            (
                "The {name} was drafted by Chancellor {value}.",
                "Its author is Chancellor {value}.",
                "Chancellor {value}.",
                "It was written by Chancellor {value} in one winter.",
            ),
        ),
    ),
)
