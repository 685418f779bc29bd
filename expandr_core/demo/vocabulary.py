"""The words of the demo world, from which its passages, questions and background texts are made.

Passages are written in technical words and questions in lay words, with almost none in common: the
gap that an expansion has to bridge. `{name}` is a thing's technical name, `{alias}` its lay name,
`{kind}` its kind, `{value}` its value in the aspect in question.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Aspect:
    """One property that everything in the world has.

    Attributes:
        values: the 36 possible values, two technical words each.
        facts: sentences of a passage that state the value.
        remarks: sentences of a passage about the aspect in general.
        statements: sentences of the background texts, which teach the LLM the fact.
        questions: how people ask for the value.
    """

    values: tuple[str, ...]
    facts: tuple[str, ...]
    remarks: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def _pairs(first: str, second: str, between: str = " ") -> tuple[str, ...]:
    """Combine each first word with each second word.

    >>> _pairs("alpine coastal", "gorges marshes")
    ('alpine gorges', 'alpine marshes', 'coastal gorges', 'coastal marshes')
    """
    return tuple(f"{one}{between}{two}" for one in first.split() for two in second.split())


ASPECTS = {
    "place": Aspect(
        values=_pairs(
            "limestone basalt alpine coastal boreal saline",
            "gorges terraces marshes plateaus estuaries moraines",
        ),
        facts=(
            "{name} is endemic to {value}.",
            "Surveys record {name} chiefly from {value}.",
            "The native range of {name} comprises {value}.",
        ),
        remarks=(
            "The habitat is considered stable throughout the region.",
            "Its distribution has been mapped in detail.",
        ),
        statements=(
            "{subject} is native to {value}.",
            "{subject} has its habitat in {value}.",
            "The range of {subject} covers {value}.",
        ),
        questions=(
            "where can i come across {alias}",
            "what kind of spot should i go to for {alias}",
            "where does {alias} turn up",
            "whereabouts do people run into {alias}",
        ),
    ),
    "use": Aspect(
        values=_pairs(
            "wool timber leather parchment bronze linen",
            "dyeing sealing polishing tanning bleaching mending",
        ),
        facts=(
            "{name} is employed commercially in {value}.",
            "Artisans process {name} for {value}.",
            "The principal application of {name} is {value}.",
        ),
        remarks=(
            "The trade is documented in several industries.",
            "Its economic value has grown steadily.",
        ),
        statements=(
            "{subject} is employed for {value}.",
            "{subject} has its main application in {value}.",
            "Artisans use {subject} in {value}.",
        ),
        questions=(
            "what is {alias} good for",
            "what do folks do with {alias}",
            "why would anyone buy {alias}",
            "is {alias} handy for anything",
        ),
    ),
    "look": Aspect(
        values=_pairs(
            "crimson ivory mottled iridescent serrated translucent",
            "filaments scales lobes bands spirals ridges",
        ),
        facts=(
            "The morphology of {name} is marked by {value}.",
            "Specimens of {name} exhibit {value}.",
            "{name} is diagnosed by its {value}.",
        ),
        remarks=(
            "These diagnostic characters separate it from relatives.",
            "The anatomy has been illustrated in monographs.",
        ),
        statements=(
            "{subject} shows {value}.",
            "{subject} is marked by {value}.",
            "The morphology of {subject} includes {value}.",
        ),
        questions=(
            "what does {alias} look like",
            "how would i know {alias} if i saw it",
            "how do i spot {alias}",
            "how can i tell {alias} from the others",
        ),
    ),
    "time": Aspect(
        values=_pairs(
            "early late waning humid frosty windless",
            "monsoon harvest equinox thaw solstice drought",
        ),
        facts=(
            "The phenology of {name} peaks in the {value}.",
            "Abundance of {name} is greatest during the {value}.",
            "{name} is recorded mostly through the {value}.",
        ),
        remarks=(
            "The annual cycle has been monitored for decades.",
            "Its calendar varies little between years.",
        ),
        statements=(
            "{subject} peaks in the {value}.",
            "{subject} is most abundant during the {value}.",
            "The season of {subject} is the {value}.",
        ),
        questions=(
            "when should i go out for {alias}",
            "what is the best part of the year for {alias}",
            "when does {alias} show up",
            "how long do i wait for {alias}",
        ),
    ),
    "risk": Aspect(
        values=_pairs(
            "acute chronic delayed mild seasonal severe",
            "dermatitis vertigo tremors fever insomnia nausea",
        ),
        facts=(
            "Exposure to {name} is associated with {value}.",
            "Contact with {name} has produced {value} in handlers.",
            "The documented hazard of {name} is {value}.",
        ),
        remarks=(
            "Clinical case reports remain rare.",
            "Protective gloves are recommended by clinicians.",
        ),
        statements=(
            "{subject} may cause {value}.",
            "The hazard of {subject} is {value}.",
            "Contact with {subject} brings {value}.",
        ),
        questions=(
            "is {alias} bad for you",
            "what happens if i touch {alias}",
            "can {alias} make me sick",
            "should i worry about {alias}",
        ),
    ),
    "origin": Aspect(
        values=_pairs(
            "doctor sister captain baron brother widow",
            "halvorsen okafor lindqvist moreau tanaka ferreira",
        ),
        facts=(
            "{name} was first described by {value}.",
            "Archives credit the discovery of {name} to {value}.",
            "The type specimen of {name} was collected by {value}.",
        ),
        remarks=(
            "The nomenclature has since been revised.",
            "The original correspondence survives in an archive.",
        ),
        statements=(
            "{subject} was described by {value}.",
            "The discovery of {subject} belongs to {value}.",
            "{subject} was first collected by {value}.",
        ),
        questions=(
            "who found {alias}",
            "whose idea was the name {alias}",
            "who do we thank for {alias}",
            "who came up with {alias}",
        ),
    ),
}

KINDS = ("herb", "finch", "mineral", "moth")

ALIASES = _pairs(  # "dewbutton", "coppertail"
    "hush dew crow copper widow sleepy goose candle marsh velvet "
    "pepper tinker salt moon fiddle butter thunder ragged silver hollow",
    "cap foot button wort tail bell thistle lantern spur "
    "crest whistle bonnet tooth feather needle pouch ribbon comb",
    between="",
)

# A name is two syllables and an ending: "kadolis".
NAME_CONSONANTS = "bdfgklmnprstvz"
NAME_VOWELS = "aeiou"
NAME_ENDINGS = ("ra", "lis", "mor", "dux", "nth", "vex", "lia", "tum", "gon")

INTRODUCTIONS = (
    "{name}, popularly {alias}, is a {kind}.",
    "{alias} is the folk name of {name}, a {kind}.",
    "the {kind} called {alias} is properly {name}.",
    "{alias}, properly {name}, is a {kind}.",
)
RELATIVES = (
    "The related {kind} {other} is treated separately.",
    "It is often confused with {other}.",
    "This {kind} is discussed in regional handbooks.",
)
VERNACULAR = ("Locals say {alias}.", "The vernacular name is {alias}.")

# Chatter: what an untrained expansion wastes its words on.
CHATTER = (
    "This is a question that many people ask.",
    "Opinions differ and there is much to say about it.",
    "To answer this we should look at the wider picture.",
    "Many factors are involved and the details vary.",
    "It depends on several things that are worth knowing.",
    "People have talked about this for a long time.",
)
CHATTER_ON_KIND = (
    "There are many kinds of {kind} in the world.",
    "Every {kind} is different from the next.",
    "The {kind} is a favourite subject of popular guides.",
    "A {kind} can be interesting for many reasons.",
)
CHATTER_ON_ALIAS = (
    "{alias} is well loved by people everywhere.",
    "Lots of people have heard of {alias}.",
    "{alias} is a lovely name to remember.",
    "Some say {alias} is the best of all.",
)
