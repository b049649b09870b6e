"""Every parameter that reaches the engine changes the answer as OpenAI says that it does."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fabric.contracts.errors import EngineRejected

if TYPE_CHECKING:
    from conftest import Caller

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: What the fabric adds on the way out.
NAMED = {"id": "x", "model": "tiny", "created": 1}
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
#: Greedy: the same words every time.
SURE = {"temperature": 0}
WILD = {"temperature": 1.5}


def likeness(a: list[float], b: list[float]) -> float:
    """1 for the same direction, 0 for nothing in common."""
    return sum(x * y for x, y in zip(a, b, strict=True))


async def test_a_chat_answer_has_openais_shape_and_nothing_else(tiny: Caller) -> None:
    asked = await tiny.chat(**SURE)
    answer = asked.answer
    parsed = ChatCompletion.model_validate(answer.body | NAMED)
    assert parsed.choices[0].message.content == asked.texts[0] != ""
    assert parsed.choices[0].finish_reason == "stop"
    assert set(answer.body) == {"object", "choices", "usage"}
    assert set(answer.body["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert answer.first_token_s is not None and answer.first_token_s > 0


async def test_chunks_have_openais_shape_and_usage_comes_at_the_end(tiny: Caller) -> None:
    asked = await tiny.chat(stream=True, **SURE)
    assert asked.answer.body == {}
    parsed = [ChatCompletionChunk.model_validate(chunk | NAMED) for chunk in asked.chunks]
    assert parsed[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in parsed[1:])
    assert [chunk.choices[0].finish_reason for chunk in parsed] == [None] * (len(parsed) - 1) + ["stop"]
    assert all(set(chunk) == {"object", "choices"} and chunk["choices"] for chunk in asked.chunks)
    assert len(parsed) == asked.answer.usage.output_tokens  # a chunk a token, the end of the turn among them
    assert asked.answer.first_token_s is not None


async def test_a_completion_has_openais_shape(tiny: Caller) -> None:
    asked = await tiny.complete(max_tokens=8, **SURE)
    parsed = Completion.model_validate(asked.answer.body | NAMED)
    assert parsed.choices[0].text == asked.texts[0]
    assert set(asked.answer.body) == {"object", "choices", "usage"}
    streamed = await tiny.complete(max_tokens=8, stream=True, **SURE)
    Completion.model_validate(streamed.chunks[-1] | NAMED)  # the type doesn't know that others haven't finished
    assert [set(chunk["choices"][0]) for chunk in streamed.chunks] == [set(asked.choices[0])] * len(streamed.chunks)
    assert [c["choices"][0]["finish_reason"] for c in streamed.chunks][-2:] == [None, "length"]


@pytest.mark.parametrize("n", [1, 2, 5])
async def test_streamed_says_the_same_as_whole(tiny: Caller, n: int) -> None:
    sampled = {"n": n, "seed": 3, "max_tokens": 20, "temperature": 1.0}
    whole, streamed = await tiny.chat(**sampled), await tiny.chat(stream=True, **sampled)
    assert streamed.texts == whole.texts
    assert len(whole.texts) == n
    used = [(asked.answer.usage.input_tokens, asked.answer.usage.output_tokens) for asked in (whole, streamed)]
    assert used[0] == used[1]


async def test_usage_counts_the_prompt_once_and_every_answer(tiny: Caller) -> None:
    one = (await tiny.complete([5, 6, 7], max_tokens=4, logit_bias=await tiny.never_end())).answer
    many = (await tiny.complete([5, 6, 7], max_tokens=4, n=3, logit_bias=await tiny.never_end())).answer
    assert (one.usage.input_tokens, one.usage.output_tokens) == (3, 4)
    assert (many.usage.input_tokens, many.usage.output_tokens) == (3, 12)
    assert many.body["usage"]["total_tokens"] == 15


async def test_a_prompt_seen_before_counts_as_cached(tiny: Caller) -> None:
    prompt = "A text that no other test has in its prompt, long enough to be worth keeping."
    await tiny.complete(prompt, max_tokens=1)
    again = (await tiny.complete(prompt, max_tokens=1)).answer
    assert again.usage.input_tokens - 1 == again.usage.cached_input_tokens
    assert again.body["usage"]["prompt_tokens_details"]["cached_tokens"] == again.usage.cached_input_tokens


@STREAMED
async def test_several_prompts_give_choices_in_their_order(tiny: Caller, stream: bool) -> None:
    prompts = ["An apple is", "A dog is", "The capital of France is"]
    limits = {"max_tokens": 6, "logit_bias": await tiny.never_end(), **SURE}
    together = await tiny.complete(prompts, n=2, stream=stream, **limits)
    alone = [(await tiny.complete(prompt, **limits)).texts[0] for prompt in prompts]
    assert together.texts == [text for text in alone for _ in range(2)]
    assert together.answer.usage.output_tokens == 6 * 6


async def test_prompts_may_be_token_ids(tiny: Caller) -> None:
    ids = await tiny.tokens("An apple is")
    text, single, double = [await tiny.complete(p, max_tokens=6, **SURE) for p in ("An apple is", ids, [ids, ids])]
    assert single.texts == text.texts
    assert double.texts == text.texts * 2


@STREAMED
async def test_a_seed_repeats_an_answer(tiny: Caller, stream: bool) -> None:
    seeds = (7, 7, 8, -1, -1, 2**63 - 1)
    same, again, other, negative, negative_again, huge = [
        (await tiny.chat("Tell me a story.", seed=s, max_tokens=30, stream=stream, **WILD)).texts[0] for s in seeds
    ]
    assert same == again
    assert negative == negative_again
    assert len({same, other, negative, huge}) == 4


async def test_no_seed_gives_another_answer_each_time(tiny: Caller) -> None:
    assert len({(await tiny.chat("Tell me a story.", max_tokens=30, **WILD)).texts[0] for _ in range(3)}) > 1


async def test_the_choices_of_a_request_differ_and_go_on_over_the_slots(tiny: Caller) -> None:
    """Two slots, five answers: the seed counts through the groups that they are asked for in."""
    many = await tiny.chat("Tell me a story.", seed=4, n=5, max_tokens=20, **WILD)
    assert len(set(many.texts)) == 5
    for index in (0, 3):
        alone = await tiny.chat("Tell me a story.", seed=4 + index, max_tokens=20, **WILD)
        assert alone.texts[0] == many.texts[index]


async def test_temperature_and_top_p_narrow_the_choice(tiny: Caller) -> None:
    async def answers(**sampling: Any) -> set[str]:
        asked = [await tiny.chat("Tell me a story.", seed=s, max_tokens=20, **sampling) for s in range(3)]
        return {a.texts[0] for a in asked}

    assert len(await answers(temperature=0)) == 1
    assert len(await answers(temperature=2, top_p=0.0001)) == 1
    assert len(await answers(temperature=2, top_p=1)) == 3


@STREAMED
@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_the_token_limit_holds(tiny: Caller, limit: str, stream: bool) -> None:
    asked = await tiny.chat("Tell me a story.", stream=stream, **{limit: 3}, **SURE)
    assert asked.answer.usage.output_tokens == 3
    end = asked.chunks[-1] if stream else asked.answer.body
    assert end["choices"][0]["finish_reason"] == "length"


async def test_without_a_limit_the_context_window_is_one(tiny: Caller) -> None:
    asked = await tiny.complete("Once", logit_bias=await tiny.never_end())
    assert asked.answer.usage.total_tokens == 1024
    assert asked.choices[0]["finish_reason"] == "length"


@STREAMED
@pytest.mark.parametrize("several", [False, True], ids=["text", "list"])
async def test_stop_ends_the_answer_before_the_stop(tiny: Caller, several: bool, stream: bool) -> None:
    text = (await tiny.chat(**SURE)).texts[0]
    word = text.split()[3]
    asked = await tiny.chat(stop=["nowhere", word] if several else word, stream=stream, **SURE)
    assert asked.texts == [text[: text.index(word)]]
    end = asked.chunks[-1] if stream else asked.answer.body
    assert end["choices"][0]["finish_reason"] == "stop"


async def test_logit_bias_forbids_and_enforces(tiny: Caller) -> None:
    text = (await tiny.chat(max_tokens=6, **SURE)).texts[0]
    first = (await tiny.tokens(text))[0]
    assert not (await tiny.chat(logit_bias={str(first): -100}, max_tokens=6, **SURE)).texts[0].startswith(text[:2])
    [comma] = await tiny.tokens(",")
    assert (await tiny.chat(logit_bias={str(comma): 100}, max_tokens=3, **SURE)).texts == [",,,"]


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
async def test_penalties_make_repetition_rarer(tiny: Caller, penalty: str) -> None:
    words = []
    for value in (2, 0, -2):
        sampling = {penalty: value, "logit_bias": await tiny.never_end(), **SURE}
        words.append((await tiny.chat(max_tokens=150, **sampling)).texts[0].split())
    variety = [len(set(said)) / len(said) for said in words]
    assert variety[0] > variety[1] > variety[2]


@STREAMED
async def test_log_probabilities_of_a_chat(tiny: Caller, stream: bool) -> None:
    asked = await tiny.chat(logprobs=True, top_logprobs=3, max_tokens=5, stream=stream, **SURE)
    if stream:
        found = [chunk["choices"][0]["logprobs"]["content"] for chunk in asked.chunks[:-1]]
        tokens = list(itertools.chain.from_iterable(found))
        ChatCompletionChunk.model_validate(asked.chunks[0] | NAMED)
    else:
        tokens = asked.choices[0]["logprobs"]["content"]
        ChatCompletion.model_validate(asked.answer.body | NAMED)
    assert "".join(t["token"] for t in tokens) == asked.texts[0]
    for chosen in tokens:
        assert set(chosen) == {"token", "logprob", "bytes", "top_logprobs"}
        assert chosen["logprob"] <= 0 and bytes(chosen["bytes"]).decode() == chosen["token"]
        assert len(chosen["top_logprobs"]) == 3
        # Greedy: the likeliest is the one that was taken.
        assert chosen["top_logprobs"][0] == {name: chosen[name] for name in ("token", "logprob", "bytes")}


async def test_log_probabilities_without_the_likeliest(tiny: Caller) -> None:
    asked = await tiny.chat(logprobs=True, max_tokens=3)
    assert [t["top_logprobs"] for t in asked.choices[0]["logprobs"]["content"]] == [[], [], []]
    assert (await tiny.chat(logprobs=False, max_tokens=3)).choices[0]["logprobs"] is None


@STREAMED
@pytest.mark.parametrize("count", [0, 2])
async def test_log_probabilities_of_a_completion(tiny: Caller, stream: bool, count: int) -> None:
    asked = await tiny.complete(logprobs=count, max_tokens=6, stream=stream, seed=1, **WILD)
    sources = asked.chunks if stream else [asked.answer.body]
    parts = [source["choices"][0]["logprobs"] for source in sources if source["choices"][0]["logprobs"]]
    Completion.model_validate(sources[-1] | NAMED)
    tokens, offsets, values, likeliest = (
        [value for part in parts for value in part[name]]
        for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    )
    assert "".join(tokens) == asked.texts[0]
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    for name, value, top in zip(tokens, values, likeliest, strict=True):
        assert top[name] == value and max(1, count) <= len(top) <= count + 1


@STREAMED
async def test_a_json_schema_is_kept_to(tiny: Caller, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "ripe": {"type": "boolean"}},
        "required": ["colour", "ripe"],
        "additionalProperties": False,
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "apple", "strict": True, "schema": schema}}
    for seed in range(3):
        asked = await tiny.chat(response_format=format_, seed=seed, max_tokens=200, stream=stream, **WILD)
        answer = orjson.loads(asked.texts[0])
        assert (
            set(answer) == {"colour", "ripe"}
            and answer["colour"] in ("red", "green")
            and answer["ripe"] in (True, False)
        )


@STREAMED
async def test_a_grammar_is_kept_to(tiny: Caller, stream: bool) -> None:
    grammar = 'root ::= ("yes" | "no") ", " [0-9] [0-9]'
    for seed in range(3):
        format_ = {"type": "grammar", "grammar": grammar}
        asked = await tiny.chat(response_format=format_, seed=seed, max_tokens=50, stream=stream, **WILD)
        assert re.fullmatch(r"(yes|no), [0-9]{2}", asked.texts[0])


async def test_a_grammar_that_is_none_is_refused(tiny: Caller) -> None:
    with pytest.raises(EngineRejected) as refused:
        await tiny.chat(response_format={"type": "grammar", "grammar": "root ::= (("}, max_tokens=5)
    assert refused.value.info.param == "response_format"


@pytest.mark.parametrize(
    "wanted", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "any"}}], ids=["object", "any"]
)
async def test_json_without_a_schema_is_an_object(tiny: Caller, wanted: Any) -> None:
    answers = [await tiny.chat(response_format=wanted, max_tokens=300, seed=seed, **WILD) for seed in range(4)]
    assert all(asked.texts[0].startswith("{") for asked in answers)
    for asked in answers:
        if asked.choices[0]["finish_reason"] == "stop":
            assert isinstance(orjson.loads(asked.texts[0]), dict)


async def test_the_text_format_changes_nothing(tiny: Caller) -> None:
    plain, text = await tiny.chat(**SURE), await tiny.chat(response_format={"type": "text"}, **SURE)
    assert plain.texts == text.texts


async def test_a_conversation_that_ends_with_the_assistant_gets_a_new_answer(tiny: Caller) -> None:
    said = [{"role": "user", "content": "What is an apple?"}, {"role": "assistant", "content": "An apple is"}]
    again = await tiny.chat([*said, {"role": "assistant", "content": "a"}], max_tokens=30, **SURE)
    assert again.texts[0]


async def test_texts_in_parts_are_texts(tiny: Caller) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is an apple?"}]}]
    assert (await tiny.chat(parts, **SURE)).texts == (await tiny.chat(**SURE)).texts


async def test_who_asks_makes_no_difference(tiny: Caller) -> None:
    assert (await tiny.chat(user="somebody", **SURE)).texts == (await tiny.chat(**SURE)).texts


async def test_embeddings_come_in_order_with_length_one(tiny: Caller) -> None:
    texts = [
        "A dog is an animal.",
        "A cat is an animal.",
        "The capital of Spain is Madrid.",
        "Hello!",
        "A dog is an animal.",
    ]
    answer = (await tiny.embed(texts)).answer
    CreateEmbeddingResponse.model_validate(answer.body | {"model": "tiny"})
    assert [item["index"] for item in answer.body["data"]] == list(range(5))
    dog, cat, spain, _, dog_again = (item["embedding"] for item in answer.body["data"])
    assert len(dog) == 256
    assert math.isclose(likeness(dog, dog), 1, rel_tol=1e-4)
    assert likeness(dog, dog_again) > 0.9999
    assert likeness(dog, cat) > likeness(dog, spain)
    alone = (await tiny.embed(texts[2])).answer
    assert likeness(alone.body["data"][0]["embedding"], spain) > 0.9999
    assert answer.usage.input_tokens == answer.body["usage"]["prompt_tokens"] > alone.usage.input_tokens > 0


async def test_embeddings_of_token_ids(tiny: Caller) -> None:
    ids = await tiny.tokens("An apple")
    text, single, double = [(await tiny.embed(x)).answer for x in ("An apple", ids, [ids, ids])]
    wanted = text.body["data"][0]["embedding"]
    for item in (*single.body["data"], *double.body["data"]):
        assert likeness(item["embedding"], wanted) > 0.9999
    assert (single.usage.input_tokens, double.usage.input_tokens) == (len(ids), 2 * len(ids))


async def test_an_embedding_may_be_as_long_as_the_context_window(tiny: Caller) -> None:
    assert (await tiny.embed([5] * 1000)).answer.usage.input_tokens == 1000


async def test_writing_and_embedding_side_by_side_do_not_mix(tiny: Caller) -> None:
    alone = (await tiny.chat(**SURE)).texts, (await tiny.embed("Hello!")).answer.body["data"][0]["embedding"]
    asked = await asyncio.gather(*(tiny.chat(**SURE) if i % 2 else tiny.embed("Hello!") for i in range(12)))
    assert all(asked[i].texts == alone[0] for i in range(1, 12, 2))
    assert all(likeness(asked[i].answer.body["data"][0]["embedding"], alone[1]) > 0.9999 for i in range(0, 12, 2))
