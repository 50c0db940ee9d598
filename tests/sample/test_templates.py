"""Dynamic Prompts syntax: what a template expands to, and what is refused."""

import pytest
from sliders.report.web_ui import multiplier_template
from sliders.sample.templates import Variant, expand, group, web_ui_syntax
from sliders.system.errors import InputError


def multipliers_of(template):
    return [dict(v.multipliers) for v in expand(template, "S", 100)]


@pytest.mark.parametrize(
    ("template", "text", "multipliers"),
    [
        ("a robe on a mannequin {<slider:0>|<slider:0.8>|<slider:1.1>|<slider:2.7>}", "a robe on a mannequin",
         [{"S": 0}, {"S": 0.8}, {"S": 1.1}, {"S": 2.7}]),
        ("a robe <slider:{-1|0|0.5}>", "a robe", [{"S": -1}, {"S": 0}, {"S": 0.5}]),
        ("a <lora:b:0.5>, {<slider:−1>|}", "a ,", [{"b": 0.5, "S": -1}, {"b": 0.5}]),
        ("<lora:b> <lora:c:0.2:0.7> x", "x", [{"b": 1.0, "c": 0.7}]),
        ("x <slider:1> <slider:0.5>", "x", [{"S": 1.5}]),
        (r"x <lora:50% a__b #1 // $c:1>", "x", [{"50% a__b #1 // $c": 1}]),
        ("", "", [{}]),
    ],
)  # fmt: skip
def test_tags_become_multipliers(template, text, multipliers):
    assert multipliers_of(template) == multipliers
    assert {v.text for v in expand(template, "S", 100)} == {text}


def test_choices_variables_and_cyclic_variants_are_expanded():
    assert [v.text for v in expand("{2$$ and $$red|blue|green} robe", "S", 100)][:2] == [
        "red and blue robe", "red and green robe",
    ]  # fmt: skip
    assert [v.text for v in expand("${c={red|blue}} a ${c} robe", "S", 100)] == ["a red robe", "a blue robe"]
    assert {v.text for v in expand("{@a|b}", "S", 100)} == {"a", "b"}  # cyclic: the library would repeat it without end


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a {b", "{ at character 3 that is never closed"),
        ("a b}", "} at character 4 without a matching {: remove it"),
        ("<slider:x>", "<slider:x> has no valid multiplier"),
        ("<slider:nan>", "<slider:nan> has no valid multiplier"),
        ("<lora:a:1:2:3>", "<lora:a:1:2:3> has no valid multiplier"),
        ("<slider:1", "'<slider:1' in '<slider:1' is not a complete tag"),
        ("50% grey", "is not valid Dynamic Prompts syntax at character 3"),
        ("${c}", "is not valid Dynamic Prompts syntax"),
        ("${c=${c}}${c}", "refers to itself without end"),
        ("${c={x|${c}}}${c}", "refers to itself without end"),
        ("{a|b|c|d}{a|b|c|d}{a|b|c|d}{a|b|c|d}", "more than 100 prompts"),
    ],
)
def test_an_invalid_template_is_refused(template, said):
    with pytest.raises(InputError, match=r"^--prompt: ") as error:
        expand(template, "S", 100)
    assert said in str(error.value)


def test_syntax_that_only_web_uis_understand_is_found():
    prompts = [
        "a (robe:1.3) [a:b:0.5], ((old)) hat",
        "red BREAK blue AND green",
        r"hats and BREAKS \(1920\), (robe:1.3)",
    ]
    assert web_ui_syntax(prompts) == ["(robe:1.3)", "[a:b:0.5]", "(old)", "BREAK", "AND"]
    assert web_ui_syntax(["a robe", ""]) == []


def test_prompts_that_differ_in_one_multiplier_form_a_group():
    variants = expand("{red|blue} robe {<slider:1>|<slider:-1>} {<lora:b:0>|<lora:b:2>}", "S", 100)
    groups = group(variants, "S")
    assert [(g.title, g.multipliers) for g in groups] == [
        ("red robe <lora:b:0>", (-1, 0, 1)), ("red robe <lora:b:2>", (-1, 0, 1)),
        ("blue robe <lora:b:0>", (-1, 0, 1)), ("blue robe <lora:b:2>", (-1, 0, 1)),
    ]  # fmt: skip
    assert groups[1].at(0.5) == Variant("red robe", (("S", 0.5), ("b", 2.0)))
    fixed = group(expand("x <lora:b:0.5> {<slider:0>|<slider:1>}", "S", 100), "S")
    assert [(g.axis, g.others) for g in fixed] == [("S", (("b", 0.5),))]
    assert [g.multipliers for g in group(expand("plain", "S", 100), "S")] == [(0.0,)]


def test_the_prompt_that_training_prints_is_a_template():
    template = multiplier_template("a_b__c", (0.67, 1.0, 2.0))
    assert template == "{<lora:a_b__c:0>|<lora:a_b__c:0.67>|<lora:a_b__c:1>|<lora:a_b__c:2>}"
    assert [v.multiplier("a_b__c") for v in expand(template, "S", 100)] == [0, 0.67, 1, 2]
