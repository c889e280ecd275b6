//! For random conversations, in every template: what is trained is the assistant's content and its
//! end-of-turn token, and nothing else.
#![allow(clippy::unwrap_used, clippy::panic)]

mod text_support;

use halter_core::data::record::{Message, Record};
use halter_core::text::encode::EncodeOptions;
use halter_core::text::mask::{MaskPolicy, mask_text};
use halter_core::text::template::{ChatTemplate, RenderOptions};
use halter_core::text::tokenizer::Tokenizer;
use proptest::prelude::*;
use text_support::*;

/// Text that trips naive searches: empty, white space, words of the templates, any characters.
fn content() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[ \n\t]{0,4}",
        "(assistant|user|system|\n|im_end| |a|:|\\[INST\\]|\\[/INST\\]|\\{\\{|%\\}|é|🦙){0,6}",
        "\\PC{0,24}",
        "[ \n]{0,2}\\PC{0,12}[ \n]{0,2}",
    ]
}

fn conversation() -> impl Strategy<Value = Vec<Message>> {
    (prop::option::of(content()), prop::collection::vec((content(), content()), 1..4)).prop_map(
        |(system, turns)| {
            let mut messages: Vec<Message> =
                system.iter().map(|text| Message::new("system", text)).collect();
            for (question, answer) in &turns {
                messages.push(Message::new("user", question));
                messages.push(Message::new("assistant", answer));
            }
            messages
        },
    )
}

struct Family {
    name: &'static str,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// What surrounds the content in a trained span.
    around: (&'static str, &'static str),
    trims: bool,
    system: bool,
}

fn families() -> Vec<Family> {
    let family = |name, tokenizer: Tokenizer, around, trims, system| {
        let template = template(&source(name), &tokenizer);
        Family { name, tokenizer, template, around, trims, system }
    };
    vec![
        family("smollm2", tokenizer("tiny_chatml"), ("", "<|im_end|>"), false, true),
        family("qwen2_5", tokenizer("tiny_chatml"), ("", "<|im_end|>"), false, true),
        family("chatml_marked", tokenizer("tiny_chatml"), ("", "<|im_end|>"), false, true),
        family("llama3", tokenizer("tiny_llama3"), ("", "<|eot_id|>"), true, true),
        family("llama3_1", tokenizer("tiny_llama3"), ("", "<|eot_id|>"), true, true),
        family("llama3_2", tokenizer("tiny_llama3"), ("", "<|eot_id|>"), true, true),
        family("llama2", tokenizer_s(), (" ", " </s>"), true, true),
        family("mistral_v1", tokenizer_s(), ("", "</s>"), false, false),
        family("mistral_nemo", tokenizer_s(), ("", "</s>"), false, true),
    ]
}

fn python_trim(text: &str) -> &str {
    text.trim_matches(|char: char| char.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&char))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_mask_covers_exactly_content_and_end_of_turn(messages in conversation()) {
        for family in families() {
            if messages[0].role() == "system" && !family.system {
                continue;
            }
            let masked = mask_text(
                &family.template, &family.tokenizer, &messages, None, MaskPolicy::All, 0,
            ).map_err(|error| TestCaseError::fail(format!("{}: {error}", family.name)))?;
            let answers: Vec<&str> = messages.iter()
                .filter(|message| message.role() == "assistant")
                .map(|message| message.content().unwrap())
                .collect();
            prop_assert_eq!(masked.turns.len(), answers.len());
            for (turn, answer) in masked.turns.iter().zip(answers) {
                let answer = if family.trims { python_trim(answer) } else { answer };
                let expected = format!("{}{answer}{}", family.around.0, family.around.1);
                prop_assert_eq!(&masked.text[turn.span.clone()], expected, "{}", family.name);
            }
            // the tokens: every trained one lies in a span, and each end of turn is trained
            let options = EncodeOptions { allow_special_text: true, ..EncodeOptions::default() };
            let record = Record::Chat { messages: messages.clone(), tools: None };
            let row = encode(&record, &family.tokenizer, &family.template, &options);
            let tokens = family.tokenizer.encode(&masked.text, false).unwrap();
            prop_assert_eq!(&tokens.ids, &row.input_ids);
            for (&(from, to), &trained) in tokens.offsets.iter().zip(&row.completion_mask) {
                let inside = masked.turns.iter()
                    .any(|turn| turn.span.start <= from && to <= turn.span.end);
                prop_assert_eq!(trained, inside, "{} {}..{}", family.name, from, to);
            }
            if row.prompt_is_prefix {
                let joined: String = trained(&family.tokenizer, &row).concat();
                let spans: String =
                    masked.turns.iter().map(|turn| &masked.text[turn.span.clone()]).collect();
                prop_assert_eq!(joined, spans, "{}", family.name);
            }
        }
    }

    #[test]
    fn generation_blocks_are_the_spans(messages in conversation()) {
        for (name, file) in [("chatml_marked", "tiny_chatml"), ("llama3_marked", "tiny_llama3")] {
            let tokenizer = tokenizer(file);
            let template = template(&source(name), &tokenizer);
            let masked =
                mask_text(&template, &tokenizer, &messages, None, MaskPolicy::All, 0).unwrap();
            let options = RenderOptions::default();
            let (text, spans) =
                template.render_with_generation_spans(&messages, &options).unwrap();
            prop_assert_eq!(&text, &masked.text);
            let ours: Vec<_> = masked.turns.into_iter().map(|turn| turn.span).collect();
            prop_assert_eq!(ours, spans);
        }
    }

    #[test]
    fn qwen3_trains_the_thought_it_puts_before_the_last_answer(messages in conversation()) {
        let tokenizer = tokenizer("tiny_chatml");
        let template = template(&source("qwen3"), &tokenizer);
        let masked =
            mask_text(&template, &tokenizer, &messages, None, MaskPolicy::All, 0).unwrap();
        for turn in &masked.turns {
            let content = messages[turn.message].content().unwrap();
            let expected = match turn.message + 1 == messages.len() {
                true => format!("<think>\n\n</think>\n\n{}<|im_end|>", content.trim_start_matches('\n')),
                false => format!("{content}<|im_end|>"),
            };
            prop_assert_eq!(&masked.text[turn.span.clone()], expected);
            prop_assert!(turn.prompt_is_prefix);
        }
    }
}
