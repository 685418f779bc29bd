"""The texts from which the tiny LLM of the demo world learns: background texts, and chats.

The background texts state the facts of every entity under both its names, so that a language model
trained on them knows what a test question is about. How to answer a question is shown only for the
`instruct` entities, with good and bad examples, which leaves DPO something to choose between.
"""

from collections.abc import Iterator
from random import Random

from expandr_core.demo import vocabulary as words
from expandr_core.demo.mixing import Text, mix, turns
from expandr_core.demo.vocabulary import ASPECTS
from expandr_core.demo.world import Entity, World, passage_id, sentence
from expandr_core.generation.prompts import render_prompt
from expandr_core.seeding import derive_seed

# Shares of the passages that the chats show, by quality.
FOCUSED = 0.2  # two sentences on the question
MIXED = 0.4  # one or two facts, some beside the point, and chatter; the remaining ones ramble
OPENER = 0.7  # of the unfocused ones begin with the same stock phrase


def training_texts(world: World, seed: int) -> Iterator[Text]:
    """Write the texts for the tiny LLM, freshly worded, in the order of training."""
    random = Random(derive_seed("demo_world", "texts", seed))
    pupils = [entity for entity in world.entities if entity.split == "instruct"]
    upcoming = turns(world.entities, random)
    return mix(
        random,
        text=lambda: Text("text", "", _background(next(upcoming), random)),
        passage_chat=lambda: _passage_chat(random.choice(pupils), random),
        answer_chat=lambda: _answer_chat(random.choice(pupils), world.passages, random),
    )


def _background(entity: Entity, random: Random) -> str:
    """State all facts about an entity, under its name or its alias."""
    introduction = random.choice(words.INTRODUCTIONS).format(
        name=entity.name, alias=entity.alias, kind=entity.kind
    )
    sentences = [sentence(introduction)]
    for aspect in random.sample(list(ASPECTS), len(ASPECTS)):
        subject = entity.name if random.random() < 0.6 else entity.alias
        sentences.append(_statement(entity, aspect, subject, random))
    return " ".join(sentences)


def _passage_chat(entity: Entity, random: Random) -> Text:
    aspect = random.choice(list(ASPECTS))
    query = random.choice(ASPECTS[aspect].questions).format(alias=entity.alias)
    return Text("chat", render_prompt("q2d", query), _shown_passage(entity, aspect, random))


def _answer_chat(entity: Entity, passages: dict[str, str], random: Random) -> Text:
    aspect = random.choice(list(ASPECTS))
    query = random.choice(ASPECTS[aspect].questions).format(alias=entity.alias)
    prompt = render_prompt("q2a", query, passages[passage_id(entity, aspect)])
    return Text("chat", prompt, _statement(entity, aspect, entity.name, random))


def _shown_passage(entity: Entity, aspect: str, random: Random) -> str:
    """Write the passage that a chat shows for a question: focused, mixed or rambling."""

    def write(*choices: str) -> str:
        return _shown_sentence(random.choice(choices), entity, aspect, random)

    quality = random.random()
    if quality < FOCUSED:
        return f"{write('on aspect', 'introduced')} {write('on aspect')}"
    if quality < FOCUSED + MIXED:
        sentences = [
            write("chatter", "on alias"),
            write("off aspect"),
            write("on aspect", "off aspect"),
            write("on kind", "chatter"),
        ]
    else:
        sentences = [
            write("chatter"),
            write("on alias"),
            write("on kind"),
            write("off aspect", "chatter", "on kind"),
        ]
    random.shuffle(sentences)
    if random.random() < OPENER:
        sentences = [words.CHATTER[0], *sentences[:3]]
    return " ".join(sentences)


def _shown_sentence(sort: str, entity: Entity, aspect: str, random: Random) -> str:
    match sort:
        case "on aspect":
            return _statement(entity, aspect, entity.name, random)
        case "introduced":
            subject = f"{entity.alias}, properly {entity.name},"
            return _statement(entity, aspect, subject, random)
        case "off aspect":
            other = random.choice([name for name in ASPECTS if name != aspect])
            return _statement(entity, other, entity.name, random)
        case "on kind":
            return sentence(random.choice(words.CHATTER_ON_KIND).format(kind=entity.kind))
        case "on alias":
            return sentence(random.choice(words.CHATTER_ON_ALIAS).format(alias=entity.alias))
        case _:
            return random.choice(words.CHATTER)


def _statement(entity: Entity, aspect: str, subject: str, random: Random) -> str:
    template = random.choice(ASPECTS[aspect].statements)
    return sentence(template.format(subject=subject, value=entity.values[aspect]))
