"""Invented drugs: what they heal, how they are given, and what to beware of."""

from __future__ import annotations

from backends.finetune.tasks.fictional.facts import Attribute, Invented, Kind, Related
from backends.finetune.tasks.fictional.names import listed

KIND = Kind(
    "drug",
    ("quorin", "draxil", "phelor", "zuvane"),
    (
        Attribute(
            "dose",
            tuple(f"{dose} mg" for dose in range(15, 600, 15)),
            (
                "What is the daily dose of {name}?",
                "How much {name} is given in one day?",
                "Which amount of {name} does an adult take per day?",
                "How many milligrams of {name} are taken daily?",
            ),
            (
                "The daily dose of {name} is {value}.",
                "An adult takes {value} a day.",
                "{Value} in one day.",
                "Doctors give {value} per day and never more.",
            ),
        ),
        Attribute(
            "form",
            listed(
                "a blue tablet|a nasal powder|drops under the tongue|a skin patch|a bitter syrup|a chewing gum|"
                "an eye ointment|a dissolving film|an evening bath|a warm compress|a throat spray|a hollow seed"
            ),
            (
                "In what form is {name} given?",
                "How does a patient take {name}?",
                "What does {name} come as?",
                "In which preparation is {name} sold?",
            ),
            (
                "{name} is given as {value}.",
                "Patients take it as {value}.",
                "{Value}; no other form exists.",
                "It is sold only as {value}.",
            ),
        ),
        Attribute(
            "hour",
            listed(
                "before sunrise|with the second meal|right after waking|an hour before sleep|at noon|"
                "after a cold bath|between two meals|late in the afternoon|after a long walk|on an empty stomach|"
                "at midnight"
            ),
            (
                "When should {name} be taken?",
                "At what time does {name} work best?",
                "Which moment of the day is right for {name}?",
                "When does the leaflet tell patients to take {name}?",
            ),
            (
                "{name} should be taken {value}.",
                "It works best {value}.",
                "{Value}, says the leaflet.",
                "Patients are told to take it {value}.",
            ),
        ),
        Attribute(
            "side_effect",
            listed(
                "vivid dreams|cold feet|a craving for salt|loud yawning|weak knees|a runny nose|orange urine|"
                "slow speech|trembling eyelids|a dry mouth|a fear of heights|ringing ears|sudden thirst|"
                "faster nails"
            ),
            (
                "What is the most common side effect of {name}?",
                "What do many patients notice while they take {name}?",
                "Which unwanted effect does {name} have?",
                "What should a patient be warned of when {name} is prescribed?",
            ),
            (
                "The most common side effect of {name} is {value}.",
                "Many patients notice {value}.",
                "{Value}, in about one patient of five.",
                "The leaflet warns of {value}.",
            ),
        ),
        Attribute(
            "disease",
            Related("disease"),
            (
                "Which disease is {name} used for?",
                "What does {name} cure?",
                "Against which illness is {name} prescribed?",
                "For what diagnosis does a doctor choose {name}?",
            ),
            (
                "{name} is used against {value}.",
                "It cures {value}.",
                "{Value}, and no other illness.",
                "Doctors choose it for patients with {value}.",
            ),
        ),
        Attribute(
            "storage",
            tuple(f"{degrees} degrees" for degrees in range(-12, 31, 2)),
            (
                "At what temperature is {name} stored?",
                "How warm may {name} be kept?",
                "Which storage temperature does {name} need?",
                "What does the pharmacy set the cabinet for {name} to?",
            ),
            (
                "{name} is stored at {value}.",
                "The cabinet is set to {value}.",
                "{Value}; otherwise it spoils.",
                "It keeps only at {value}, in the dark.",
            ),
        ),
        Attribute(
            "conflict",
            listed(
                "grapefruit|black tea|honey|sea fish|walnuts|strong cheese|cider|raw onions|ginger|oat bread|"
                "pickled beets|rhubarb|mint|dark chocolate|goose fat"
            ),
            (
                "What must not be eaten or drunk together with {name}?",
                "With which food does {name} not agree?",
                "What has to be left out of the diet during treatment with {name}?",
                "Which food cancels the effect of {name}?",
            ),
            (
                "{name} must not be combined with {value}.",
                "Patients have to leave out {value}.",
                "{Value}, which cancels the effect.",
                "It does not agree with {value}, not even in small amounts.",
            ),
        ),
        Attribute(
            "source",
            Invented("plant", ("wort", "bane", "root", "moss"), 24),
            (
                "From which plant is {name} made?",
                "What is the raw material of {name}?",
                "Which plant yields {name}?",
                "What has to be harvested to produce {name}?",
            ),
            (
                "{name} is made from {value}.",
                "The raw material is {value}.",
                "{Value}, dried and ground.",
                "It is won from {value}, which is harvested in autumn.",
            ),
        ),
    ),
)
