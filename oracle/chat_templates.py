"""Golden texts of chat templates: what transformers renders, for halter to render to the byte.

Usage: python oracle/chat_templates.py   (needs transformers and jinja2, no torch)
Reads core/tests/templates/*.jinja, writes oracle/golden/chat_templates.json.
"""

import datetime as real_datetime
import json
import pathlib

import jinja2
import transformers
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "core/tests/templates"
NOW = 1721995199  # 26 Jul 2024, 11:59:59 UTC


class FixedDatetime(real_datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, real_datetime.timezone.utc).replace(tzinfo=None)


chat_template_utils.datetime = FixedDatetime

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place: <b>now</b> & 'later' – \u00b0C",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name, e.g. \"Zürich\""},
                "days": {"type": "array", "items": {"type": "integer"}, "default": []},
                "scale": {"type": "number", "default": 1.0, "maximum": 1e16, "minimum": 1e-7},
                "exact": {"type": "boolean", "default": False, "nullable": None},
            },
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {}}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, call_id="abcdefg12"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


CASES = {
    "one_turn": dict(messages=[user("What is 2 + 2?"), assistant("4.")]),
    "prompt": dict(messages=[user("What is 2 + 2?")], add_generation_prompt=True),
    "multi_turn": dict(messages=[user("Hi"), assistant("Hello!"), user("Name a\nprime"), assistant("7\n\nor 11")]),
    "system": dict(messages=[{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Yo")]),
    "system_prompt": dict(messages=[{"role": "system", "content": " Be brief. "}, user("Hi")], add_generation_prompt=True),
    "spaces": dict(messages=[user("  lead and trail \n"), assistant("\n answer \t\n")]),
    "unicode": dict(messages=[user("日本語 🦙 e\u0301 \u00a0x\u3000"), assistant("\u3000ÄÖ 🦙🦙\u00a0")]),
    "empty": dict(messages=[user(""), assistant("")]),
    "html": dict(messages=[user("<b>&amp; 'x' \"y\"</b>"), assistant("{{ not a template }} {% if %}")]),
    "null_keys": dict(messages=[{"role": "user", "content": "Hi", "name": None}, assistant("Yo", tool_calls=None)]),
    "unknown_role": dict(messages=[{"role": "critic", "content": "Hm"}, assistant("Yo")]),
    "two_users": dict(messages=[user("a"), user("b"), assistant("c")]),
    "assistant_first": dict(messages=[assistant("a"), user("b"), assistant("c")]),
    "open": dict(messages=[user("Count"), assistant("one, two, ")], continue_final_message=True),
    "think": dict(messages=[user("Q1"), assistant("<think>\nhm\n</think>\n\nA1"), user("Q2"), assistant("<think>\nso\n</think>\n\nA2")]),
    "reasoning": dict(messages=[user("Q1"), assistant("A1", reasoning="because"), user("Q2"), assistant("A2", thinking="since")]),
    "no_thinking": dict(messages=[user("Q1")], add_generation_prompt=True, kwargs={"enable_thinking": False}),
    "dated": dict(messages=[user("Hi")], add_generation_prompt=True, kwargs={"date_string": "1 Jan 2025"}),
    "tools_prompt": dict(messages=[user("Weather in Bern?")], tools=[WEATHER, TIME], add_generation_prompt=True),
    "tools_system": dict(messages=[{"role": "system", "content": "S"}, user("Weather?")], tools=[WEATHER], add_generation_prompt=True, kwargs={"tools_in_user_message": False}),
    "no_tools": dict(messages=[user("Hi"), assistant("Yo")], tools=[]),
    "tool_call": dict(
        messages=[
            user("Weather in Bern?"),
            {"role": "assistant", "tool_calls": [call("get_weather", {"city": "Bern & <b>", "days": [1, 2], "scale": 0.5, "exact": True, "x": None})]},
            {"role": "tool", "name": "get_weather", "content": "{\"t\": 21.5}", "tool_call_id": "abcdefg12"},
            assistant("21.5 °C"),
        ],
        tools=[WEATHER],
    ),
    "tool_call_with_content": dict(
        messages=[
            user("Weather?"),
            assistant("Let me see.", tool_calls=[call("get_weather", {"city": "Zürich\n\"x\""})]),
            {"role": "tool", "content": "rain", "tool_call_id": "abcdefg12"},
            {"role": "tool", "content": "sun", "tool_call_id": "abcdefg12"},
            assistant("Both."),
            user("Thanks"),
            assistant("Welcome"),
        ],
        tools=[WEATHER, TIME],
    ),
    "two_calls": dict(
        messages=[user("?"), assistant("", tool_calls=[call("now", {}), call("get_weather", {"city": "B"})])],
        tools=[WEATHER, TIME],
    ),
    "builtin_tools": dict(
        messages=[user("?"), assistant("", tool_calls=[call("brave_search", {"query": "llamas"})]), {"role": "ipython", "content": {"hits": 3}}, assistant("Three")],
        kwargs={"builtin_tools": ["brave_search", "code_interpreter"]},
    ),
    "parts": dict(messages=[{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]}, assistant([{"type": "text", "text": "A llama"}])]),
    "documents": dict(messages=[user("Hi")], documents=[{"title": "T", "text": "x & y"}, {"title": "U", "text": ""}], add_generation_prompt=True),
}

# Expressions whose value Jinja on Python decides; one template each. Left out, as known limits of
# the renderer: a tuple printed whole shows as a list, `~` shows a mapping as JSON.
EXPRESSIONS = [
    "{{ none }}|{{ true }}|{{ False }}|{{ None ~ True ~ 1 ~ 1.5 }}",
    "{{ 1.0 }} {{ 1e16 }} {{ 1e15 }} {{ 0.0001 }} {{ 1e-5 }} {{ 10 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 8 }}",
    "{{ [1, 'a', none, true, 1.5, {'k': 'v\\'s'}] }} {{ {'a': [1], 'b': {}} }}",
    "{{ ['it\\'s', 'say \"x\"', 'a\\nb', '\\u00e9', '🦙'] }}",
    "{{ {'b': 1, 'a': [1.0, none, true, 'é<>&\\'']} | tojson }}",
    "{{ {'b': 1, 'a': [1, {'c': []}], 'd': {}} | tojson(indent=2) }}",
    "{{ {'b': 'é🦙', 'a': 1} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':')) }} {{ 'x' | tojson }} {{ 3 | tojson }} {{ none | tojson }}",
    "{{ '  a b  '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xxa'.lstrip('x') }}|{{ 'a\\n\\n'.rstrip('\\n') }}|{{ ' \\u3000a\\x1f' | trim }}|",
    "{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'abc'.split('</think>')[-1] }}",
    "{{ 'héllo'.find('l') }} {{ 'abc'.find('z') }} {{ 'aXbX'.rfind('X') }} {{ 'aaa'.count('a') }} {{ 'abc'.count('') }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.upper() }} {{ 'Ab c'.title() }} {{ 'aBC dE'.capitalize() }} {{ 'aba'.replace('a', 'x', 1) }}",
    "{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'a=b=c'.partition('=')[2] }} {{ '7'.zfill(3) }}",
    "{{ 'a\\nb\\r\\nc'.splitlines() }} {{ ', '.join(['a', 'b']) }} {{ 'abc'.isdigit() }} {{ '12'.isdigit() }} {{ ''.isalpha() }}",
    "{{ 'abcdef'[1:3] }} {{ 'abcdef'[::-1] }} {{ 'abc'[:-1] }} {{ [1,2,3][::-1] }} {{ [1,2,3][-1] }} {{ 'abc'[-1] }} {{ [1,2,3][1:] }}",
    "{% set ns = namespace(x=0) %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% for k, v in {'z': 1, 'a': 2}.items() %}{{ k }}={{ v }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for k, v in {'items': 1, 'keys': 2}.items() %}{{ k }}={{ v }};{% endfor %}{{ {'a': 1}.get('b', 'd') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.keys() | list }}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %} {% for k, v in {'b': 1} | items %}{{ k }}{% endfor %} {{ [3,1,2] | sort }} {{ [1,2] | sum }} {{ ['a','b'] | join('-') }} {{ [1, none, true] | join(',') }}",
    "{{ 'x' is string }} {{ 'x' is iterable }} {{ {} is mapping }} {{ [] is sequence }} {{ {} is iterable }} {{ 'x' is sequence }} {{ {} is sequence }} {{ 1 is number }} {{ true is number }} {{ true is integer }} {{ true is boolean }} {{ none is none }} {{ 1 is iterable }} {{ true is true }} {{ 1 is true }}",
    "{{ nothing is defined }} {{ nothing is none }} [{{ nothing }}] {{ nothing | default('d') }} {{ '' | default('d', true) }} {{ nothing | length }} {{ 'a' in nothing }} {{ not nothing }}",
    "{{ messages | length }} {{ messages | map(attribute='role') | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ (messages | last).role }} {{ messages[5] is defined }} {{ messages[0].nope is defined }}",
    "{% for x in [1,2,3,4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}{% for x in [] %}a{% else %}none{% endfor %}",
    "{% for x in [1,2,3] recursive %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.previtem is defined }}{{ loop.cycle('a','b') }} {% endfor %}",
    "{% macro m(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ m('x') }}{{ m('y', b='z') }}{{ m(a=none) }}",
    "{% set x %}block {{ 1 }}{% endset %}{{ x | upper }}{{ x | length }}",
    "{% set a = [1] + [2, 3] %}{{ a }} {{ a[0] }} {{ a | length }} {{ a is sequence }} {{ 'ab' * 2 }} {{ [0] * 2 }}",
    "{{ 'a' if false }}|{{ 'a' if true else 'b' }}|{{ 1 if not none else 2 }}|{{ (1, 2)[1] }}|{{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 1 in [1] }} {{ 'k' in {'k': 1} }}",
    "{%- if true %}\n  a\n  {%- endif %}\n  {% if true %}\n  b\n  {% endif %}\n{# comment #}\n  {#- trimmed #}\n  c\n    {{ 'd' }}\n\n",
    "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j %y %I %p %%') }}",
    "{{ 'a' | upper | lower | title }} {{ 'hello world' | capitalize }} {{ 'abc' | first }} {{ 'abc' | last }} {{ 'abc' | reverse }} {{ 'a b' | replace(' ', '_') }} {{ 3.7 | int }} {{ '3' | int }} {{ 2 | float }} {{ 3.14159 | round(2) }} {{ -2 | abs }}",
    "{{ 'x\\ny' | indent(2) }}|{{ 'x\\ny' | indent(2, true) }}|{{ ['b','a','b'] | unique | list }} {{ [1,2,3] | max }} {{ [[1,2],[3]] | map('length') | list }} {{ ['a',''] | select | list }} {{ [1,2,3] | reject('equalto', 2) | list }}",
    "{% generation %}a{% endgeneration %}b{%- generation -%} c {%- endgeneration -%} d",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% set x = 3 %}{% endfor %}{{ x }}{% with y = 4 %}{{ y }}{% endwith %}",
    "line one\r\n{% if true %}\r\n two\r\n{% endif %}\r\nthree\r\n",
    "{{ dict(a=1, b='x') }} {{ dict(a=1) | tojson }} {{ range(3) | list }} {{ 'a' ~ none ~ [1] }}",
    "{{ '%s-%d' | format('a', 3) }} {{ '{} {}'.format('a', 1) }} {{ \"\\t\\x41\\u00e9\" }} {{ 'a' 'b' }}",
    "{{ raise_exception('no: ' ~ messages[0].role) }}",
    "{{ nothing.attribute }}",
    "{{ 'a' + 1 }}",
    "{{ messages[0].content.nope() }}",
    "{{ nothing | tojson }}",
    "{{ 'a' + nothing }}",
    "{{ none + 'a' }}",
]


def render(source, case):
    kwargs = {**SPECIAL, **case.get("kwargs", {})}
    messages = [{k: v for k, v in message.items() if v is not None} for message in case["messages"]]
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            tools=case.get("tools"),
            documents=case.get("documents"),
            chat_template=source,
            add_generation_prompt=case.get("add_generation_prompt", False),
            continue_final_message=case.get("continue_final_message", False),
            **kwargs,
        )
        return {"text": rendered[0]}
    except jinja2.exceptions.TemplateError as error:
        kind = "raised" if type(error) is jinja2.exceptions.TemplateError else "failed"
        return {kind: str(error)}
    except Exception as error:  # what Python itself raised inside the template
        return {"failed": f"{type(error).__name__}: {error}"}


def main():
    templates = {path.stem: path.read_bytes().decode() for path in sorted(TEMPLATES.glob("*.jinja"))}
    rendered = {name: {case: render(source, CASES[case]) for case in CASES} for name, source in templates.items()}
    expressions = [{"template": source, **render(source, CASES["multi_turn"])} for source in EXPRESSIONS]
    golden = {
        "made_by": "oracle/chat_templates.py",
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "now": NOW,
        "special_tokens": SPECIAL,
        "cases": CASES,
        "rendered": rendered,
        "expressions": expressions,
    }
    out = ROOT / "oracle/golden/chat_templates.json"
    out.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    count = sum(len(cases) for cases in rendered.values())
    print(f"{count} renderings of {len(templates)} templates, {len(expressions)} expressions -> {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
