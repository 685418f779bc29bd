"""The demo world: invented things, their passages, and lay questions about them.

Each thing (an "entity") has a technical name, a lay alias, a kind, and a value in each of six
aspects. Passages use the name and technical words; questions use the alias and lay words. The splits
share no entity, but they share the wording of questions. Everything is drawn from the seed.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from expandr_core.demo import vocabulary as words
from expandr_core.demo.vocabulary import ASPECTS
from expandr_core.errors import DataError
from expandr_core.options.data import DemoWorldOptions
from expandr_core.seeding import derive_seed

Split = Literal["instruct", "train", "dev", "test"]


@dataclass(frozen=True)
class Entity:
    """One thing of the world."""

    number: int
    split: Split
    name: str
    alias: str
    kind: str
    values: dict[str, str]


class Question(NamedTuple):
    """One query with the one passage that answers it."""

    query_id: str
    text: str
    entity: Entity
    passage_id: str


class World(NamedTuple):
    """A whole world; `passages` are by id, in the order of the collection."""

    entities: list[Entity]
    passages: dict[str, str]
    questions: dict[Split, list[Question]]


def make_world(options: DemoWorldOptions, seed: int) -> World:
    """Draw the world of a seed."""
    random = Random(derive_seed("demo_world", seed))
    entities = _entities(options, random)
    passages: dict[str, str] = {}
    for entity in entities:
        for aspect in ASPECTS:
            passages[passage_id(entity, aspect)] = _passage(entity, aspect, entities, random)
        passages[f"register-{entity.number:03d}"] = _register_entry(entity, random)
    passages |= _general_passages(random)
    wordings = {"train": options.questions_per_aspect, "dev": 1, "test": 1}
    questions: dict[Split, list[Question]] = {"train": [], "dev": [], "test": []}
    for entity in entities:
        if entity.split != "instruct":
            questions[entity.split] += _questions(entity, wordings[entity.split], random)
    return World(entities, passages, questions)


def query_log(world: World, seed: int) -> list[str]:
    """Ask once more about all that is asked, without judgements and in other words, in random order.

    Every thing and aspect whose questions have a wording left is asked about in one of those.
    """
    random = Random(derive_seed("demo_query_log", seed))
    asked = {question.text for questions in world.questions.values() for question in questions}
    log = []
    for entity in world.entities:
        if entity.split == "instruct":
            continue
        for vocabulary in ASPECTS.values():
            texts = [template.format(alias=entity.alias) for template in vocabulary.questions]
            if left := [text for text in texts if text not in asked]:
                log.append(random.choice(left))
    random.shuffle(log)
    return log


def passage_id(entity: Entity, aspect: str) -> str:
    """Name the passage that states an entity's value in an aspect."""
    return f"{aspect}-{entity.number:03d}"


def _entities(options: DemoWorldOptions, random: Random) -> list[Entity]:
    sizes: dict[Split, int] = {
        "instruct": options.instruct_entities,
        "train": options.train_entities,
        "dev": options.dev_entities,
        "test": options.test_entities,
    }
    splits: list[Split] = [split for split, size in sizes.items() for _ in range(size)]
    if len(splits) > len(words.ALIASES):
        raise DataError(
            f"the demo world has lay names for {len(words.ALIASES)} entities, not for {len(splits)}; "
            "lower the numbers of entities in the options of the world"
        )
    aliases = random.sample(words.ALIASES, len(splits))
    names = _names(len(splits), random)
    return [
        Entity(
            number=number,
            split=split,
            name=names[number],
            alias=aliases[number],
            kind=random.choice(words.KINDS),
            values={aspect: random.choice(ASPECTS[aspect].values) for aspect in ASPECTS},
        )
        for number, split in enumerate(splits)
    ]


def _names(count: int, random: Random) -> list[str]:
    names: dict[str, None] = {}  # a set that keeps its order
    while len(names) < count:
        syllables = [
            random.choice(words.NAME_CONSONANTS) + random.choice(words.NAME_VOWELS)
            for _ in range(2)
        ]
        names["".join(syllables) + random.choice(words.NAME_ENDINGS)] = None
    return list(names)


def _passage(entity: Entity, aspect: str, entities: list[Entity], random: Random) -> str:
    """State one fact among sentences that many passages share; often mention a relative."""
    relatives = [e for e in entities if e.kind == entity.kind and e is not entity] or entities
    about = {"kind": entity.kind, "other": random.choice(relatives).name}
    template = random.choice(ASPECTS[aspect].facts)
    fact = sentence(template.format(name=entity.name, value=entity.values[aspect]))
    others = [
        random.choice(ASPECTS[aspect].remarks),
        random.choice(words.RELATIVES).format(**about),
    ]
    if random.random() < 0.35:
        others.append(random.choice(words.VERNACULAR).format(alias=entity.alias))
    if random.random() < 0.5:
        others.append(random.choice(words.CHATTER + words.CHATTER_ON_KIND).format(kind=entity.kind))
    random.shuffle(others)
    position = 0 if random.random() < 0.7 else 1
    return " ".join([*others[:position], fact, *others[position:]])


def _register_entry(entity: Entity, random: Random) -> str:
    sentences = [sentence(f"{entity.name} is a {entity.kind} listed in the register.")]
    for aspect in random.sample(list(ASPECTS), 2):
        sentences.append(f"The entry mentions {entity.values[aspect]}.")
    if random.random() < 0.35:
        sentences.append(f"The vernacular name is {entity.alias}.")
    return " ".join(sentences)


def _general_passages(random: Random) -> dict[str, str]:
    """Write passages about values and kinds, without any entity: they answer no question."""
    passages = {}
    for aspect, vocabulary in ASPECTS.items():
        for number, value in enumerate(vocabulary.values):
            passages[f"{aspect}-topic-{number:02d}"] = " ".join(
                [
                    sentence(f"{value} are a general topic of study."),
                    random.choice(vocabulary.remarks),
                    f"Many a {random.choice(words.KINDS)} is mentioned in connection with {value}.",
                ]
            )
    for kind in words.KINDS:
        for number, template in enumerate(words.CHATTER + words.CHATTER_ON_KIND):
            passages[f"{kind}-general-{number:02d}"] = " ".join(
                [
                    template.format(kind=kind),
                    random.choice(words.CHATTER_ON_KIND).format(kind=kind),
                    random.choice(words.CHATTER),
                ]
            )
    return passages


def _questions(entity: Entity, wordings: int, random: Random) -> list[Question]:
    questions = []
    for aspect, vocabulary in ASPECTS.items():
        for number, template in enumerate(random.sample(vocabulary.questions, wordings), 1):
            query_id = f"{entity.split}-{entity.number:03d}-{aspect}-{number}"
            text = template.format(alias=entity.alias)
            questions.append(Question(query_id, text, entity, passage_id(entity, aspect)))
    return questions


def sentence(text: str) -> str:
    """Begin with a capital letter.

    >>> sentence("dewcap is a herb.")
    'Dewcap is a herb.'
    """
    return text[0].upper() + text[1:]
