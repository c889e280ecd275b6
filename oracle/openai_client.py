#!/usr/bin/env python3
"""Asks a running `halter serve` through the official `openai` package and checks what it says.

    halter serve --model bundled --port 8000 &
    python oracle/openai_client.py --base-url http://127.0.0.1:8000/v1

Needs `pip install openai`. Exits 1 at the first check that fails; the last line counts them.
"""

import argparse
import sys

import openai

CHECKS = 0


def check(holds, what):
    global CHECKS
    CHECKS += 1
    if not holds:
        sys.exit(f"failed: {what}")


def chats(client, model):
    messages = [{"role": "user", "content": "Ann has 3 eggs and buys 4. How many?"}]
    ask = dict(model=model, messages=messages, max_tokens=32, seed=7)
    whole = client.chat.completions.create(**ask)
    text = whole.choices[0].message.content
    check(whole.choices[0].finish_reason in ("stop", "length"), "finish reason")
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, "usage")
    check(client.chat.completions.create(**ask).choices[0].message.content == text, "same seed, same text")

    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check(streamed == text, "the stream is the whole answer")
    check(chunks[-1].usage == whole.usage, "usage of the stream")

    several = client.chat.completions.create(**ask, n=4)
    check([choice.index for choice in several.choices] == [0, 1, 2, 3], "four choices")
    check(several.choices[0].message.content == text, "the first of four is the one alone")
    check(len({choice.message.content for choice in several.choices}) > 1, "choices differ")

    told = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    check(all(len(entry.top_logprobs) == 3 for entry in told), "three of the likeliest")
    check(all(entry.logprob <= 0 for entry in told), "log-probs")
    spelled = b"".join(bytes(entry.bytes) for entry in told).decode(errors="replace")
    check(spelled.startswith(text), "tokens spell the text")

    if len(text) > 8:
        stop = text[len(text) // 2 :][:3]
        cut = client.chat.completions.create(**ask, stop=[stop]).choices[0]
        check(cut.message.content == text[: text.index(stop)], "text before the stop string")
        check(cut.finish_reason == "stop", "stopped")


def completions(client, model):
    ask = dict(model=model, prompt="Ann has 3 eggs.", temperature=0, max_tokens=8)
    made = client.completions.create(**ask, logprobs=2, echo=True).choices[0]
    check(made.text.startswith("Ann has 3 eggs."), "echo")
    logprobs = made.logprobs
    check(logprobs.token_logprobs[0] is None, "the first token has no log-prob")
    check(len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset), "lists")
    both = client.completions.create(**{**ask, "prompt": ["One.", "Two."]}, n=1)
    check(len(both.choices) == 2, "two prompts")
    extra = {"return_tokens_as_token_ids": True}
    ids = client.completions.create(**ask, logprobs=0, echo=True, extra_body=extra).choices[0].logprobs
    ids = [int(token.removeprefix("token_id:")) for token in ids.tokens]
    scored = client.completions.create(model=model, prompt=ids, max_tokens=0, echo=True, logprobs=2)
    check(scored.choices[0].logprobs.token_logprobs == logprobs.token_logprobs, "scored as generated")


def refusals(client, model):
    message = [{"role": "user", "content": "x"}]
    for error, more in [
        (openai.NotFoundError, {"model": "no-such-model"}),
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"max_tokens": 10**9}),
        (openai.BadRequestError, {"response_format": {"type": "json_object"}}),
    ]:
        try:
            client.chat.completions.create(**{"model": model, "messages": message, **more})
        except error as refused:
            check(refused.body["message"], "a refusal says why")
        else:
            check(False, f"{more} is refused")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key=args.api_key)
    model = client.models.list().data[0].id
    check(client.models.retrieve(model).id == model, "models")
    chats(client, model)
    completions(client, model)
    refusals(client, model)
    print(f"{model}: {CHECKS} checks, all good (openai {openai.__version__})")


if __name__ == "__main__":
    main()
