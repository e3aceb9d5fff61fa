"""Prose out of help texts, and its split."""

from itertools import chain

import pytest

from sigma_fairseq.demo.language_model_corpus import prose, split_topics

HELP = """The "assert" statement
**********************

Assert statements are a convenient way to insert debugging assertions
into a program:

   assert_stmt ::= "assert" expression ["," expression]

* Otherwise the items are compared one by one, and a comma-
  separated list of them
  is – except for *one* – “returned”.

   >>> assert True, "one two three four five six."
   Traceback (most recent call last)

   if 1 - 2 -
      3 is not any of the numbers above.

Too short.

   Called when the   attribute is looked up, and then never again.
"""


def test_prose_is_paragraphs_that_end_as_sentences_with_their_lines_joined() -> None:
    assert list(prose(HELP)) == [
        "Otherwise the items are compared one by one, and a comma-separated list of them "
        "is – except for *one* – “returned”.",
        "if 1 - 2 - 3 is not any of the numbers above.",
        "Called when the attribute is looked up, and then never again.",
    ]


def sentence(topic: int, number: int) -> str:
    return f"This is what sentence {number} of topic {topic} tells you."


TOPICS = {
    f"topic{topic}": "\n\n".join([sentence(topic, number) for number in range(topic + 1)])
    for topic in range(20)
} | {"all": "\n\n".join(sentence(topic, 0) for topic in range(20))}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_topics_stay_whole_and_paragraphs_are_in_one_part(seed: int) -> None:
    parts = split_topics(TOPICS, seed, held_out=1000)
    assert sorted(chain.from_iterable(parts.values())) == sorted(
        sentence(topic, number) for topic in range(20) for number in range(topic + 1)
    )
    for part in ("valid", "test"):
        assert 700 < sum(map(len, parts[part])) <= 1000
    for topic in range(20):
        # But for the first sentence, which is also in another topic.
        own = {sentence(topic, number) for number in range(1, topic + 1)}
        assert sum(not own.isdisjoint(part) for part in parts.values()) <= 1


def test_split_is_of_the_seed() -> None:
    assert split_topics(TOPICS, 1, 1000) == split_topics(TOPICS, 1, 1000)
    assert split_topics(TOPICS, 1, 1000) != split_topics(TOPICS, 2, 1000)
