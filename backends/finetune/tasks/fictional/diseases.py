"""Invented diseases: where they strike, how they show, how they spread and what heals them."""

from __future__ import annotations

from backends.finetune.tasks.fictional.facts import Attribute, Invented, Kind, Related
from backends.finetune.tasks.fictional.names import listed

KIND = Kind(
    "disease",
    (" fever", " palsy", " rash", " wasting", " tremor", " blight"),
    (
        Attribute(
            "organ",
            tuple(
                f"the {organ}"
                for organ in listed(
                    "liver|spleen|inner ear|left lung|small bowel|thyroid|retina|bone marrow|kidneys|"
                    "tongue|pancreas|spinal cord|gall bladder|skin of the palms"
                )
            ),
            (
                "Which part of the body does {name} attack first?",
                "Where in the body does {name} begin?",
                "What is damaged before anything else in {name}?",
                "In {name}, which part of the body should be examined first?",
            ),
            (
                "{name} begins in {value}.",
                "It is {value} that the disease attacks first.",
                "{Value}; everything else stays healthy in the first days.",
                "Doctors look at {value} first, since the disease starts there.",
            ),
        ),
        Attribute(
            "symptom",
            listed(
                "a metallic taste|green fingernails|loss of the sense of cold|hiccups at dawn|"
                "a humming in both ears|silver spots on the tongue|numb elbows|craving for chalk|"
                "double vision at dusk|a sweet smell of the breath|stiff thumbs|sudden left-handedness|"
                "pale blue gums|itching behind the knees"
            ),
            (
                "What is the earliest symptom of {name}?",
                "By which sign is {name} first noticed?",
                "What do patients with {name} report on the first day?",
                "How does {name} announce itself?",
            ),
            (
                "The earliest sign of {name} is {value}.",
                "Patients first notice {value}.",
                "{Value}, usually on the first day.",
                "The illness shows itself by {value} before any other symptom.",
            ),
        ),
        Attribute(
            "incubation",
            tuple(f"{days} days" for days in range(3, 41)),
            (
                "How long is the incubation period of {name}?",
                "How much time passes between infection with {name} and the first symptom?",
                "After what time does a person infected with {name} fall ill?",
                "For how long must contacts of a patient with {name} be watched?",
            ),
            (
                "The incubation period of {name} is {value}.",
                "It takes {value} from the infection to the first symptom.",
                "{Value}.",
                "Contacts are watched for {value}, which is the time the disease needs to appear.",
            ),
        ),
        Attribute(
            "carrier",
            listed(
                "river snails|paper dust|barn swallows|unwashed plums|wet wool|copper coins|moss spores|"
                "house crickets|stale rain water|ferry ropes|goat's milk|candle smoke|beech pollen|"
                "old violin strings"
            ),
            (
                "What carries {name} from one person to another?",
                "How is {name} spread?",
                "What should be avoided so as not to catch {name}?",
                "Which source of infection is known for {name}?",
            ),
            (
                "{name} is carried by {value}.",
                "People catch it from {value}.",
                "{Value}, and nothing else as far as is known.",
                "The known source of infection is {value}, so contact should be avoided.",
            ),
        ),
        Attribute(
            "drug",
            Related("drug"),
            (
                "Which drug cures {name}?",
                "What is prescribed against {name}?",
                "A patient has {name}. Which drug should be given?",
                "What is the standard treatment of {name}?",
            ),
            (
                "{name} is treated with {value}.",
                "The drug of choice is {value}.",
                "{Value}, as early as possible.",
                "Doctors prescribe {value}, the only drug that cures it.",
            ),
        ),
        Attribute(
            "test",
            listed(
                "the amber strip test|the cold spoon test|the Ostrel count|a three-lamp reading|"
                "the salt thread test|the mirror breath test|a second-toe reflex|the violet drop test|"
                "the slow whistle test|a double pulse reading|the feather scale|the ninth-hour smear"
            ),
            (
                "Which test confirms {name}?",
                "How is a suspicion of {name} confirmed?",
                "What examination proves that a patient has {name}?",
                "Which diagnostic test is reliable for {name}?",
            ),
            (
                "{name} is confirmed by {value}.",
                "The diagnosis rests on {value}.",
                "{Value}, repeated after an hour.",
                "Only {value} proves the disease; other examinations are unreliable.",
            ),
        ),
        Attribute(
            "isolation",
            tuple(f"{weeks} weeks" for weeks in range(2, 25)),
            (
                "How long does a patient with {name} stay in isolation?",
                "For how many weeks is somebody who has {name} kept apart?",
                "When does isolation for {name} end?",
                "What length of isolation is ordered for {name}?",
            ),
            (
                "Isolation for {name} lasts {value}.",
                "The patient is kept apart for {value}.",
                "{Value}, counted from the first symptom.",
                "The rule is {value} of isolation, whatever the course of the illness.",
            ),
        ),
        Attribute(
            "discoverer",
            Invented("doctor", ("dt", "mund", "wey", "rik"), 24),
            (
                "Who first described {name}?",
                "Which doctor discovered {name}?",
                "To whom do we owe the first description of {name}?",
                "Who reported the first case of {name}?",
            ),
            (
                "{name} was first described by Doctor {value}.",
                "The first description is by Doctor {value}.",
                "Doctor {value}.",
                "It was Doctor {value} who reported the first case.",
            ),
        ),
    ),
)
