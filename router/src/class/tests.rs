//! Planted values are found in every spelling; ordinary text, code and digests have nothing in them.

use std::path::Path;
use std::sync::LazyLock;

use penstock_cluster::catalog::{Catalog, Source};
use penstock_proto::DataClass;
use proptest::prelude::*;

use super::checksum::resident_check;
use super::{Classed, Detectors, Found, Raiser};

const CATALOG: &str = "\
detectors:
  - {name: account_no, pattern: '\\b62\\d{14,17}\\b', check: luhn, class: restricted}
  - {name: contract, pattern: '合同[A-Z]{2}\\d{6}', class: confidential}
  - {name: vip, dictionary: /vip.txt, class: confidential}
  - {name: email, class: internal}
";

static DETECTORS: LazyLock<Detectors> = LazyLock::new(|| {
    let source = Source { file: "c.yaml".to_owned(), text: CATALOG.to_owned() };
    let read = |path: &Path| {
        assert_eq!(path, Path::new("/vip.txt"));
        Ok("# people\nAda Lovelace\n\n王小明\nAnn\n".to_owned())
    };
    Detectors::compile(&Catalog::read(vec![source]).unwrap(), read).unwrap()
});

fn found(text: &str) -> Vec<String> {
    let findings = DETECTORS.scan(text);
    findings.found().iter().map(|finding| finding.detector.to_string()).collect()
}

#[test]
fn every_kind_is_found() {
    for (text, detector) in [
        ("pay with 4111 1111 1111 1111 12/27 please", "card"),
        ("378282246310005", "card"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "iban"),
        ("gb82-west-1234-5698-7654-32", "iban"),
        ("身份证11010519491231002X，", "cn_resident_id"),
        ("110105 19491231 002x", "cn_resident_id"),
        ("电话13912345678谢谢", "cn_mobile"),
        ("+86 139 1234 5678", "cn_mobile"),
        ("+86 139 1234 5678", "phone"),
        ("SSN: 078-05-1120", "us_ssn"),
        ("my social security number is 078051120", "us_ssn"),
        ("call 415-555-2671 now", "phone"),
        ("+442079460958", "phone"),
        ("write to ada.l@bank.example.", "email"),
        ("写信给zhang＠bank．example", "email"),
        ("AKIAIOSFODNN7EXAMPLE", "secret"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "secret"),
        ("xoxb-123456789012-abcdefABCDEF", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----", "secret"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "secret"),
        ("sk-proj-abcdefghij0123456789", "secret"),
        ("password: Tr0ub4dor&3x", "secret"),
        ("\"api_key\": \"9f8e7d6c5b4a39281706\"", "secret"),
        ("密码：Abc123!@#xyz", "secret"),
        ("合同AB123456", "contract"),
        ("met ada LOVELACE today", "vip"),
        ("客户王小明先生", "vip"),
    ] {
        let found = found(text);
        assert!(found.iter().any(|name| name == detector), "{text}: {found:?}");
    }
}

#[test]
fn ordinary_text_has_nothing_in_it() {
    for text in [
        "The quick brown fox jumps over the lazy dog on 2024-11-25 at 10:15:30, for 3.5 million dollars.",
        "550e8400-e29b-41d4-a716-446655440000 and d41d8cd98f00b204e9800998ecf8427e",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "let token = self.tokens.next(); max_tokens: 128000, tokenizer_v2_config_path",
        "password = request.get_password(); secret = None",
        "your password must have at least 12 characters",
        "@decorator def f(x): return x @ y; npm i pkg@1.2.3",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "epoch 1700000000000 and 1700000000000000000 ns, 0.4111111111111111",
        "192.168.100.200 2023-11-25 2023-11-26",
        "4111111111111112 is no card, DE89370400440532013001 no IBAN, 110105194912310021 no id",
        "annual planning at Annapolis",
        "一二三四五六七八九十，第1234条，2024年11月25日，金额5000000元。",
        "",
    ] {
        assert_eq!(found(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn findings_name_detector_class_and_place_and_never_the_text() {
    let strings = [("messages[0].content", "hello"), ("messages[2].content", "4111111111111111 a@b.example")];
    let findings = DETECTORS.scan_all(strings);
    assert_eq!(findings.class(), Some(DataClass::Restricted));
    let mut class = Classed::of_tenant(DataClass::Internal);
    class.raise(Raiser::Header, DataClass::Public);
    assert_eq!(class.class(), DataClass::Internal);
    class.raise_by(&findings);
    let raised: Vec<String> = class.raised_by().iter().map(|raised| raised.by.to_string()).collect();
    assert_eq!(raised, ["detector card in messages[2].content"]);
    assert!(findings.has("email") && !format!("{findings:?}").contains("4111"));
}

#[test]
fn the_highest_finding_is_kept_however_many_there_are() {
    let texts: Vec<String> =
        (0..100).map(|_| "a@b.example".to_owned()).chain(["4111111111111111".to_owned()]).collect();
    let findings = DETECTORS.scan_all(texts.iter().enumerate().map(|(at, text)| (at, text.as_str())));
    assert_eq!(findings.class(), Some(DataClass::Restricted));
    assert!(findings.found().len() <= 32);
}

#[test]
fn a_dictionary_that_is_missing_or_empty_is_an_error_with_its_line() {
    let catalog = Catalog::read(vec![Source { file: "c.yaml".to_owned(), text: CATALOG.to_owned() }]).unwrap();
    let missing = Detectors::compile(&catalog, |_| Err(std::io::ErrorKind::NotFound.into())).unwrap_err();
    assert!(missing.to_string().starts_with("c.yaml:4: the dictionary /vip.txt cannot be read"));
    let empty = Detectors::compile(&catalog, |_| Ok("# none\n".to_owned())).unwrap_err();
    assert_eq!(empty.to_string(), "c.yaml:4: the dictionary /vip.txt has no entries");
}

/// Digits that pass Luhn's checksum.
fn with_luhn(digits: &str) -> String {
    let last = (b'0'..=b'9').find(|last| super::checksum::luhn(&[digits.as_bytes(), &[*last]].concat()));
    format!("{digits}{}", char::from(last.unwrap()))
}

fn resident(area: u32, day: u32, sequence: u32) -> String {
    let body = format!("11{area:04}19{:02}{:02}{:02}{sequence:03}", day % 90 + 10, day % 12 + 1, day % 28 + 1);
    format!("{body}{}", char::from(resident_check(body.as_bytes())))
}

/// The spellings of a number: a separator now and then, and full-width forms.
fn spell(number: &str, separator: char, every: usize, wide: bool) -> String {
    let mut written = String::new();
    for (at, character) in number.chars().enumerate() {
        if at > 0 && at % every == 0 {
            written.push(separator);
        }
        let shifted = char::from_u32(u32::from(character) + 0xfee0).unwrap();
        written.push(if wide { shifted } else { character });
    }
    written
}

fn planted() -> impl Strategy<Value = (Found, String)> {
    prop_oneof![
        "4[0-9]{14}".prop_map(|body| (Found::Card, with_luhn(&body))),
        "5[1-5][0-9]{13}".prop_map(|body| (Found::Card, with_luhn(&body))),
        "62[0-9]{16}".prop_map(|body| (Found::Card, with_luhn(&body))),
        "3[47][0-9]{12}".prop_map(|body| (Found::Card, with_luhn(&body))),
        (0..10_000_u32, any::<u32>(), 0..1000_u32)
            .prop_map(|(area, day, sequence)| (Found::CnResidentId, resident(area, day, sequence))),
        "1[3-9][0-9]{9}".prop_map(|number| (Found::CnMobile, number)),
        Just((Found::Iban, "DE89370400440532013000".to_owned())),
        Just((Found::Iban, "NO9386011117947".to_owned())),
    ]
}

const SEPARATORS: [char; 10] = [' ', '-', '.', '\u{a0}', '\u{3000}', '－', '．', '\u{2011}', '–', '\u{200b}'];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn planted_numbers_are_found_in_every_spelling(
        (kind, number) in planted(),
        separator in prop::sample::select(SEPARATORS.to_vec()),
        every in 1..20_usize,
        wide in any::<bool>(),
        before in prop::sample::select(vec!["", "账号", "number: ", "（", "x\n", "=\"", "é "]),
        after in prop::sample::select(vec!["", "。", " and", "，谢谢", "\"", ")", "号"]),
    ) {
        // The letters of an IBAN's country stand together.
        let every = if kind == Found::Iban { every.max(2) } else { every };
        let text = format!("{before}{}{after}", spell(&number, separator, every, wide));
        prop_assert!(found(&text).iter().any(|name| name == kind.as_str()), "{}: {:?}", text, found(&text));
    }

    #[test]
    fn a_pattern_of_ones_own_is_found_in_every_spelling(
        body in "62[0-9]{16}",
        separator in prop::sample::select(SEPARATORS.to_vec()),
        every in 1..20_usize,
    ) {
        let text = format!("账号{}，", spell(&with_luhn(&body), separator, every, false));
        prop_assert!(found(&text).iter().any(|name| name == "account_no"), "{}", text);
    }

    #[test]
    fn digests_uuids_and_words_have_nothing_in_them(
        digest in "[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[a-f][0-9a-f]{11}|([a-z]{1,9} ){1,20}",
    ) {
        // A UUID that looks like an IBAN is one by its check digits once in 97 times: to find it then is right.
        let excused = |name: &String| name == "vip" || (name == "iban" && digest.contains('-'));
        let found: Vec<String> = found(&digest).into_iter().filter(|name| !excused(name)).collect();
        prop_assert!(found.is_empty(), "{}: {:?}", digest, found);
    }

    #[test]
    fn arbitrary_text_does_not_upset_it(text in any::<String>(), digits in r"[0-9 .\-\u{a0}Xx@+A-Z]{0,60}") {
        found(&text);
        found(&digits);
        found(&format!("{text}{digits}"));
    }
}
