//! The verdict on a text does not depend on its pieces, and finds what is found in whole texts.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use penstock_cluster::catalog::{Catalog, Name, Source};
use proptest::prelude::*;

use super::super::Detectors;
use super::{Cut, Finder, HOLD, Search};

const CATALOG: &str = "\
detectors:
  - {name: account_no, pattern: '\\b62\\d{14,17}\\b', check: luhn, class: restricted}
  - {name: contract, pattern: '合同[A-Z]{2}\\d{6}', class: confidential}
  - {name: ticket, pattern: '(?i)ref-[a-f]{2,5}$|caf\u{e9} \\d\\d\\B', class: confidential}
  - {name: vip, dictionary: /vip.txt, class: confidential}
";
const CUSTOM: [&str; 4] = ["account_no", "contract", "ticket", "vip"];
const BUILT_IN: [&str; 8] = ["card", "iban", "cn_resident_id", "us_ssn", "secret", "cn_mobile", "email", "phone"];

fn catalog() -> Catalog {
    Catalog::read(vec![Source { file: "c.yaml".to_owned(), text: CATALOG.to_owned() }]).unwrap()
}

fn read(_: &Path) -> std::io::Result<String> {
    Ok("Ada Lovelace\n王小明\nAnn\nAnn Lee\nΟΔΟΣ\nC++\n".to_owned())
}

fn finder(names: &[&str]) -> Arc<Finder> {
    let names: Vec<Name> = names.iter().map(|name| Name::new(name).unwrap()).collect();
    Arc::new(Finder::compile(&catalog(), &names, read).unwrap())
}

static ALL: LazyLock<Arc<Finder>> = LazyLock::new(|| finder(&[&BUILT_IN[..], &CUSTOM].concat()));
static EACH: LazyLock<Vec<(&str, Arc<Finder>)>> =
    LazyLock::new(|| BUILT_IN.iter().chain(&CUSTOM).map(|name| (*name, finder(&[name]))).collect());
static DETECTORS: LazyLock<Detectors> = LazyLock::new(|| Detectors::compile(&catalog(), read).unwrap());

/// A text after its verdict, given in these pieces, and the most that was held.
fn redact(finder: &Arc<Finder>, pieces: &[&str]) -> (String, usize) {
    let (mut search, mut cuts, mut most) = (Search::new(finder), Vec::new(), 0);
    for piece in pieces {
        search.push(piece, &mut cuts);
        most = most.max(search.held());
    }
    search.end(&mut cuts);
    assert_eq!(search.held(), 0);
    let (text, mut at, mut out) = (pieces.concat(), 0, String::new());
    for cut in cuts {
        match cut {
            Cut::Pass(length) => {
                out.push_str(&text[at..at + length]);
                at += length;
            }
            Cut::Drop(length) => at += length,
            Cut::Mark(label) => out.push_str(&format!("[{}]", finder.name(label))),
        }
    }
    assert_eq!(at, text.len());
    (out, most)
}

fn pieces<'t>(text: &'t str, sizes: &[usize]) -> Vec<&'t str> {
    let (mut rest, mut pieces, mut sizes) = (text, Vec::new(), sizes.iter().cycle());
    while let Some(size) = sizes.next().filter(|_| !rest.is_empty()) {
        let end = rest.char_indices().nth(*size).map_or(rest.len(), |(at, _)| at);
        let (piece, behind) = rest.split_at(end);
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

/// What is planted, and what the text is to be then.
const PLANTED: [(&str, &str, &str); 30] = [
    ("card", "pay with 4111 1111 1111 1111 12/27 please", "pay with [card] 12/27 please"),
    ("card", "378282246310005", "[card]"),
    ("card", "４１１１　1111-1111．1111、", "[card]、"),
    ("iban", "IBAN DE89 3704 0044 0532 0130 00.", "IBAN [iban]."),
    ("iban", "gb82-west-1234-5698-7654-32", "[iban]"),
    ("cn_resident_id", "身份证11010519491231002X，", "身份证[cn_resident_id]，"),
    ("cn_resident_id", "110105 19491231 002x", "[cn_resident_id]"),
    ("cn_mobile", "电话13912345678谢谢", "电话[cn_mobile]谢谢"),
    ("cn_mobile", "+86 139 1234 5678", "+[cn_mobile]"),
    ("phone", "+86 139 1234 5678", "[phone]"),
    ("us_ssn", "SSN: 078-05-1120", "SSN: [us_ssn]"),
    ("us_ssn", "my social security number is 078051120!", "my social security number is [us_ssn]!"),
    ("phone", "call 415-555-2671 now", "call [phone] now"),
    ("phone", "+442079460958", "[phone]"),
    ("email", "write to ada.l@bank.example.", "write to [email]."),
    ("email", "写信给zhang＠bank．example", "写信给[email]"),
    ("secret", "AKIAIOSFODNN7EXAMPLE", "[secret]"),
    ("secret", "ghp_0123456789abcdefghijABCDEFGHIJ012345xyz!", "[secret]!"),
    ("secret", "xoxb-123456789012-abcdefABCDEF", "[secret]"),
    ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIE+/=\n-----END RSA PRIVATE KEY-----\nso", "[secret]\nso"),
    ("secret", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N ok", "[secret] ok"),
    ("secret", "sk-proj-abcdefghij0123456789", "[secret]"),
    ("secret", "password: Tr0ub4dor&3x", "password: [secret]"),
    ("secret", "\"api_key\": \"9f8e7d6c5b4a39281706\"", "\"api_key\": \"[secret]\""),
    ("account_no", "账号6222 0200 0000 0000 0，", "账号[account_no]，"),
    ("contract", "合同AB12 34-56", "[contract]"),
    ("ticket", "Cafe 123 and ref-ab", "Cafe 123 and [ticket]"),
    ("ticket", "cafe\u{301} 123", "[ticket]3"),
    ("vip", "met ada LOVELACE today, ann lee, c++", "met [vip] today, [vip], [vip]"),
    ("vip", "客户王小明先生 οδος", "客户[vip]先生 [vip]"),
];

#[test]
fn what_is_planted_is_found_and_split_at_every_byte() {
    for (name, text, expected) in PLANTED {
        let (_, finder) = EACH.iter().find(|(other, _)| *other == name).unwrap();
        assert_eq!(redact(finder, &[text]).0, expected, "{name}");
        for at in text.char_indices().map(|(at, _)| at) {
            assert_eq!(redact(finder, &[&text[..at], &text[at..]]).0, expected, "{name} at {at}");
        }
        assert_eq!(redact(finder, &pieces(text, &[1])).0, expected, "{name} by characters");
    }
}

#[test]
fn a_secret_of_any_length_is_dropped_to_its_end_and_nothing_of_it_is_held() {
    let secret = format!("sk-{}", "a1B2".repeat(500));
    let text = format!("it is {secret}, so");
    let (out, most) = redact(&ALL, &pieces(&text, &[7]));
    assert_eq!(out, "it is [secret], so");
    assert!(most <= HOLD);
}

#[test]
fn what_is_not_certain_in_time_is_none() {
    let long = format!("{}@{}.example", "x".repeat(70), "y.".repeat(120));
    let (whole, _) = redact(&ALL, &[&long]);
    let (split, most) = redact(&ALL, &pieces(&long, &[3]));
    assert_eq!(whole, split);
    assert!(most <= HOLD);
}

#[test]
fn what_is_out_at_a_cut_is_not_followed_by_its_rest() {
    let (mut search, mut cuts) = (Search::new(&ALL), Vec::new());
    search.push("card 4111 1111 11", &mut cuts);
    search.cut(&mut cuts);
    assert_eq!(search.held(), 0);
    search.push("11 1111 and so on", &mut cuts);
    search.end(&mut cuts);
    assert_eq!(cuts.iter().filter(|cut| matches!(cut, Cut::Drop(7))).count(), 1, "{cuts:?}");
    assert!(!cuts.iter().any(|cut| matches!(cut, Cut::Mark(_))));
}

#[test]
fn nothing_is_held_but_the_beginning_of_a_match() {
    let held = |finder: &Arc<Finder>, text: &str| {
        let mut search = Search::new(finder);
        search.push(text, &mut Vec::new());
        search.held()
    };
    let card = finder(&["card"]);
    assert_eq!(held(&card, "the quick brown fox. "), 1, "the last character may get a mark");
    assert_eq!(held(&card, "so 4111 1"), 6);
    assert_eq!(held(&ALL, "the quick brown fo"), 2);
    assert_eq!(held(&ALL, "合同AB12 3"), "合同AB12 3".len());
}

#[test]
fn what_stands_before_is_known_and_not_searched() {
    let (mut search, mut cuts) = (Search::behind(&ALL, "password: "), Vec::new());
    search.push("Tr0ub4dor&3x", &mut cuts);
    search.end(&mut cuts);
    assert_eq!(cuts, [Cut::Mark(4), Cut::Drop(12)]);
}

/// Texts that are full of what detectors look at.
fn texts() -> impl Strategy<Value = String> {
    let planted = prop::sample::select(PLANTED.map(|(_, text, _)| text.to_owned()).to_vec());
    let halves = (planted.clone(), 0..40_usize).prop_map(|(text, at)| text.chars().take(at).collect::<String>());
    let piece = prop_oneof![
        3 => planted,
        3 => halves,
        2 => "[0-9]{1,6}",
        2 => r"[ \-.+@0-9A-Za-z,\n]{1,12}",
        1 => "(ghp_|sk-|eyJ|AKIA|token |password: |ssn |DE|ref-|caf|e\u{301}|\u{301}|６２|62|Ann|王小|C\\+)",
        1 => "[A-Za-z0-9_-]{20,60}",
        1 => r"\PC{0,8}",
        1 => "[ ０-９\u{a0}\u{200b}–．-]{1,8}",
    ];
    prop::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn pieces_do_not_matter_and_little_is_held(text in texts(), sizes in prop::collection::vec(1..30_usize, 1..6)) {
        for finder in EACH.iter().map(|(_, finder)| finder).chain([&*ALL]) {
            let (whole, _) = redact(finder, &[&text]);
            let (split, most) = redact(finder, &pieces(&text, &sizes));
            prop_assert_eq!(&whole, &split);
            let (split, least) = redact(finder, &pieces(&text, &[1]));
            prop_assert_eq!(&whole, &split);
            prop_assert!(most.max(least) <= HOLD);
        }
    }

    #[test]
    fn what_whole_texts_are_searched_for_is_found_here_too(text in texts()) {
        for (name, finder) in EACH.iter() {
            let (out, _) = redact(finder, &[&text]);
            let found = DETECTORS.scan(&text).has(name);
            // A secret must be certain in time; one that is found later is none here.
            if found && text.len() <= HOLD {
                prop_assert!(out != text, "{} in {:?}", name, text);
            }
            // A pattern may be found at the end of a number that runs into a letter: more is redacted there, never less.
            if !found && !["secret", "account_no"].contains(name) {
                prop_assert_eq!(&out, &text, "{} is not in it", name);
            }
        }
    }

    #[test]
    fn any_text_at_all_is_borne(text in any::<String>(), sizes in prop::collection::vec(1..9_usize, 1..4)) {
        let (whole, _) = redact(&ALL, &[&text]);
        let (split, most) = redact(&ALL, &pieces(&text, &sizes));
        prop_assert_eq!(whole, split);
        prop_assert!(most <= HOLD);
    }
}
