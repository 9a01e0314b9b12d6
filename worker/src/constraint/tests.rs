//! Constraints over a vocabulary of bytes and a few words.

use super::*;

/// The bytes, then two special tokens, then words.
const START: u32 = 256;
const END: u32 = 257;

fn compiler() -> Compiler {
    let files = crate::scripted::files();
    Compiler::new(&files[0].bytes, 320, &[END]).unwrap()
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

async fn compiled(constraint: Constraint) -> Box<dyn Grammar> {
    compiler().compile(constraint, Vec::new()).await.unwrap()
}

async fn refused(constraint: Constraint) -> String {
    compiler().compile(constraint, Vec::new()).await.map(drop).unwrap_err().to_string()
}

fn schema_of(json: &str) -> Constraint {
    Constraint::JsonSchema(json.to_owned())
}

fn regex_of(text: &str) -> Constraint {
    Constraint::Regex(text.to_owned())
}

fn grammar_of(text: &str) -> Constraint {
    Constraint::Grammar(text.to_owned())
}

fn allows(grammar: &mut Box<dyn Grammar>, id: u32) -> bool {
    grammar.allowed().unwrap()[id as usize / 32] >> (id % 32) & 1 == 1
}

/// Whether a text is a whole word of the language, and whether it could go on.
async fn is_word(constraint: Constraint, text: &str) -> bool {
    let mut grammar = compiled(constraint).await;
    for id in ids(text) {
        if !allows(&mut grammar, id) {
            return false;
        }
        grammar.accept(id).unwrap();
    }
    allows(&mut grammar, END)
}

#[tokio::test]
async fn words_of_a_language_are_let_through_and_others_are_not() {
    let person = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":5},"größe":{"type":"integer"}},
        "required":["name"],"additionalProperties":false}"#;
    for (constraint, words, others) in [
        (
            schema_of(person),
            vec![r#"{"name":"Ann"}"#, r#"{"name": "Ann", "größe": 3}"#, "{\n  \"name\": \"\"\n}"],
            vec![r#"{"name":"Johanna"}"#, r#"{"größe":3}"#, r#"{"name":"Ann","x":1}"#, r#"{"name":   "Ann"}"#, "{}"],
        ),
        (schema_of(r#"{"type":"object"}"#), vec!["{}", r#"{"a": [1, null]}"#], vec!["[]", "1"]),
        (schema_of("true"), vec!["[]", "1", r#""a""#], vec!["a"]),
        (regex_of(r"\d{3}-[a-f]+"), vec!["123-abc"], vec!["12-abc", "123-", " 123-a", "123-ag"]),
        (regex_of("a/b|水"), vec!["a/b", "水"], vec!["a", "b"]),
        (grammar_of("start: NAME \" is \" (\"good\" | \"bad\")\nNAME: /[A-Z][a-z]+/"), vec!["Bob is bad"], vec!["Bob"]),
    ] {
        for word in words {
            assert!(is_word(constraint.clone(), word).await, "{word} is none of {constraint:?}");
        }
        for other in others {
            assert!(!is_word(constraint.clone(), other).await, "{other} is one of {constraint:?}");
        }
    }
}

#[tokio::test]
async fn special_tokens_are_no_text_and_the_end_is_allowed_where_a_word_is_whole() {
    let mut grammar = compiled(regex_of("a+")).await;
    assert!(!allows(&mut grammar, END) && !allows(&mut grammar, START));
    grammar.accept(u32::from(b'a')).unwrap();
    assert!(allows(&mut grammar, END) && allows(&mut grammar, u32::from(b'a')) && !allows(&mut grammar, START));
    let mut anything = compiled(regex_of("(?s:.)*")).await;
    assert!(!allows(&mut anything, START));
    let mut over = compiled(regex_of("a")).await;
    over.accept(u32::from(b'a')).unwrap();
    let allowed: u32 = over.allowed().unwrap().iter().map(|word| word.count_ones()).sum();
    assert!(allows(&mut over, END) && allowed == 1);
}

#[tokio::test]
async fn an_answer_goes_on_from_any_of_its_outputs() {
    let constraint = schema_of(r#"{"type":"array","items":{"enum":["a","bb"]},"maxItems":3}"#);
    let whole = ids(r#"["bb","a"]"#);
    let mut straight = compiled(constraint.clone()).await;
    for cut in 0..=whole.len() {
        let mut resumed = compiler().compile(constraint.clone(), whole[..cut].to_vec()).await.unwrap();
        assert_eq!(resumed.allowed().unwrap(), straight.allowed().unwrap(), "after {cut}");
        if let Some(next) = whole.get(cut) {
            straight.accept(*next).unwrap();
        }
    }
    let foreign = compiler().compile(constraint, ids(r#"["bx"#)).await.map(drop);
    assert_eq!(foreign.unwrap_err(), Refusal::Resume { position: 3 });
}

#[tokio::test]
async fn what_cannot_be_compiled_says_why_and_where() {
    for (constraint, said) in [
        (schema_of(r#"{"type":"#), "line 1 column"),
        (schema_of("[]"), "object or a boolean"),
        (schema_of("false"), "schema is false"),
        (schema_of(r#"{"type":"wizard"}"#), "wizard"),
        (schema_of(r#"{"not":{"type":"string"}}"#), "not"),
        (schema_of(r#"{"type":"string","format":"wizardry"}"#), "wizardry"),
        (schema_of(r##"{"$ref":"#/$defs/none"}"##), "none"),
        (schema_of(r##"{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}"##), "into itself at \"#\""),
        (schema_of(r#"{"type":"integer","minimum":5,"maximum":1}"#), "minimum"),
        (grammar_of("start: start"), "no text"),
        (schema_of(r#"{"type":"string","pattern":"(?=a)b"}"#), "look-around"),
        (regex_of("(?=a)b"), "look-around"),
        (regex_of(r"(a)\1"), "backreferences"),
        (regex_of("(a"), "unclosed group"),
        (grammar_of("start: nobody"), "nobody"),
        (grammar_of("start: \"a\n"), "1("),
        (grammar_of(""), "start"),
        (regex_of(&"a".repeat(MAX_BYTES + 1)), "65537 bytes"),
    ] {
        let message = refused(constraint.clone()).await;
        assert!(message.contains(said), "{constraint:?}: {message}");
    }
}

#[tokio::test]
async fn hostile_constraints_end_in_time() {
    let nested = |open: &str, middle: &str, close: &str, depth: usize| {
        format!("{}{middle}{}", open.repeat(depth), close.repeat(depth))
    };
    let refs: String = (0..2000).map(|n| format!("r{n}: r{}\n", n + 1)).collect();
    for constraint in [
        schema_of(r##"{"$ref":"#"}"##),
        schema_of(r##"{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}"##),
        schema_of(r##"{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}"##),
        schema_of(&nested(r#"{"items":"#, "true", "}", 120)),
        schema_of(&nested(r#"{"items":"#, "true", "}", 5000)),
        schema_of(r#"{"type":"array","items":{"type":"string"},"minItems":1000000000,"maxItems":2000000000}"#),
        schema_of(r#"{"type":"string","minLength":100000000}"#),
        schema_of(r#"{"type":"string","pattern":"^(a|a)*(b|b){900}(a?){900}a{900}$"}"#),
        regex_of(&nested("(", "a", ")", 30_000)),
        regex_of("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
        regex_of("(x+x+)+y"),
        regex_of(r"\p{L}{1,5000}.{0,5000}\p{N}{3000}"),
        grammar_of(&format!("start: {}", nested("(", "\"a\"", ")", 30_000))),
        grammar_of(&format!("start: r0\n{refs}r2000: \"a\"")),
        grammar_of("start: start"),
        grammar_of("start: start start | \"a\" | \"\""),
        grammar_of("start: a\na: b{1000}\nb: c{1000}\nc: d{1000}\nd: \"x\""),
    ] {
        match compiler().compile(constraint.clone(), Vec::new()).await {
            Ok(mut grammar) => assert!(grammar.allowed().is_ok(), "{constraint:.80?}"),
            Err(refusal @ (Refusal::TooSlow | Refusal::Busy | Refusal::Resume { .. })) => panic!("{refusal}"),
            Err(_) => {}
        }
    }
}
