//! What is issued, beside files that people write and change.

use super::*;

const NOW: Duration = Duration::from_secs(1_795_591_728);
const FILE: &str = "# ours\ntenants:\n  - {name: retail, models: [], keys: [{id: k1, sha256: \
                    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}]}\n";

fn file(text: &str) -> Source {
    Source { file: "c.yaml".to_owned(), text: text.to_owned() }
}

fn catalog(sources: Vec<Source>) -> Catalog {
    Catalog::read(sources).unwrap_or_else(|invalid| panic!("{invalid}"))
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn digest(key: &str) -> Digest {
    Digest::of(key.as_bytes())
}

fn create(tenant: &str, key: &str) -> Edit {
    let (name, sha256) = (name(tenant), digest(key));
    Edit::CreateTenant { name, class: None, models: Vec::new(), sha256 }
}

fn after(before: &Catalog, change: &Edit) -> Catalog {
    catalog(edit(before, change, NOW).unwrap())
}

/// A tenant's keys: ids, and when they end.
fn keys(catalog: &Catalog, tenant: &str) -> Vec<(String, Option<Duration>)> {
    let keys = &catalog.tenant_keys()[tenant];
    keys.iter().map(|key| (key.id.to_string(), key.expires.map(Moment::get))).collect()
}

fn key(id: &str, end: Option<Duration>) -> (String, Option<Duration>) {
    (id.to_owned(), end)
}

#[test]
fn a_tenant_is_made_with_its_first_key_and_the_files_stay_as_they_are() {
    let before = catalog(vec![file(FILE)]);
    let (public, class) = (DataClass::Public, Some(DataClass::Public));
    let models = vec!["small-*".to_owned()];
    let made = after(&before, &Edit::CreateTenant { name: name("web"), class, models, sha256: digest("a") });
    assert_eq!(made.sources()[0], before.sources()[0]);
    let web = &made.tenants["web"];
    assert_eq!((web.class, web.models[0].matches("small-1"), web.at.to_string()), (public, true, "issued:3".into()));
    assert_eq!(keys(&made, "web"), [key("k1", None)]);
    assert_eq!(made.tenant_keys()["web"][0].sha256, digest("a"));

    let refused = edit(&made, &create("web", "b"), NOW).unwrap_err().to_string();
    assert!(refused.contains("has a key already (k1)") && refused.contains("rotate-key"), "{refused}");
    let again = Edit::CreateTenant { name: name("web"), class, models: Vec::new(), sha256: digest("b") };
    assert!(matches!(edit(&made, &again, NOW), Err(Refused::TenantThere { .. })));
    // One that is there and has no key gets its first.
    let keyless = catalog(vec![file("tenants: [{name: t, models: []}]\n")]);
    assert_eq!(keys(&after(&keyless, &create("t", "a")), "t"), [key("k1", None)]);
}

#[test]
fn a_rotated_key_lives_on_until_its_end_wherever_it_stands() {
    let before = catalog(vec![file(FILE)]);
    let until = Moment::at(NOW + Duration::from_secs(60));
    let rotate = |key: &str| Edit::RotateKey { tenant: name("retail"), sha256: digest(key), until };
    let once = after(&before, &rotate("a"));
    assert_eq!(keys(&once, "retail"), [key("k1", Some(until.get())), key("k2", None)]);
    let twice = after(&once, &rotate("b"));
    let all = [key("k1", Some(until.get())), key("k2", Some(until.get())), key("k3", None)];
    assert_eq!(keys(&twice, "retail"), all);
    let later = Moment::at(NOW + Duration::from_secs(120));
    let thrice = after(&twice, &Edit::RotateKey { tenant: name("retail"), sha256: digest("c"), until: later });
    assert_eq!(keys(&thrice, "retail")[..2], all[..2], "no end moves away");
    let nobody = edit(&before, &Edit::RotateKey { tenant: name("web"), sha256: digest("a"), until }, NOW).unwrap_err();
    assert_eq!(nobody.to_string(), "there is no tenant web; there are: retail");
    // What has long ended is forgotten, but for what stands in a file.
    let much_later = NOW + Duration::from_secs(60) + MEMORY;
    let forgotten = catalog(edit(&twice, &create("web", "d"), much_later).unwrap());
    assert_eq!(keys(&forgotten, "retail"), [all[0].clone(), all[2].clone()]);
}

#[test]
fn a_revoked_key_stays_so_when_its_file_is_applied_again() {
    let before = catalog(vec![file(FILE)]);
    let revoke = |id: &str| Edit::RevokeKey { tenant: name("retail"), id: name(id) };
    let revoked = after(&before, &revoke("k1"));
    let ended = [key("k1", Some(NOW))];
    assert_eq!(keys(&revoked, "retail"), ended);
    let again = beside(vec![file(FILE)], &catalog(vec![file(FILE)]), &revoked);
    assert_eq!(keys(&catalog(again), "retail"), ended);
    for id in ["k1", "k9"] {
        let refused = edit(&revoked, &revoke(id), NOW).unwrap_err().to_string();
        assert_eq!(refused, format!("tenant retail has no key {id} that lives; it has: none"));
    }
    let diff = before.diff(&revoked).to_string();
    assert!(diff.starts_with("~ tenant retail\n    keys: ") && diff.contains("2026-11-25T07:28:48Z"), "{diff}");
}

#[test]
fn files_that_are_applied_leave_what_is_issued_and_win_where_they_say_it_too() {
    let before = catalog(vec![file(FILE)]);
    let sha256 = digest("o");
    let operator = Edit::CreateOperator { name: name("alice"), role: OperatorRole::Viewer, sha256 };
    let issued = after(&after(&before, &create("web", "a")), &operator);
    let applied = |text: &str| catalog(beside(vec![file(text)], &catalog(vec![file(text)]), &issued));
    let other = applied("models: [{name: small}]\n");
    assert_eq!((other.tenants.len(), other.operators.len(), keys(&other, "web").len()), (1, 1, 1));
    // The file takes both over; the tenant keeps its key.
    let taken = applied(
        "tenants: [{name: web, models: [], class: public}]\noperators: [{name: alice, role: admin, sha256: \
         e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}]\n",
    );
    assert_eq!((taken.tenants["web"].class, taken.operators["alice"].role), (DataClass::Public, OperatorRole::Admin));
    assert_eq!(keys(&taken, "web"), [key("k1", None)]);
    // Everything in one file, as `get` shows it.
    let whole: String = issued.sources().iter().map(|source| format!("{}---\n", source.text)).collect();
    assert_eq!(applied(&whole).sources().len(), 1);
    // A tenant that is gone takes its keys along.
    let given = after(&before, &Edit::RotateKey { tenant: name("retail"), sha256, until: Moment::at(NOW) });
    let gone = beside(vec![file("models: [{name: m}]\n")], &catalog(vec![file("models: [{name: m}]\n")]), &given);
    assert_eq!(catalog(gone).keys, []);
}

#[test]
fn an_operator_is_let_in_once_and_out_again() {
    let in_file = "operators: [{name: root, role: admin, sha256: \
                   e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}]\n";
    let before = catalog(vec![file(in_file)]);
    let (role, sha256) = (OperatorRole::Viewer, digest("o"));
    let create = Edit::CreateOperator { name: name("alice"), role, sha256 };
    let made = after(&before, &create);
    assert_eq!(made.operators["alice"].role, role);
    let refused = edit(&made, &create, NOW).unwrap_err().to_string();
    assert_eq!(refused, "operator alice is there already, at issued:3");
    let revoke = |who: &str| Edit::RevokeOperator { name: name(who) };
    assert!(!after(&made, &revoke("alice")).operators.contains_key("alice"));
    let out = after(&made, &revoke("root"));
    assert_eq!(out.revoked_at(&out.operators["root"].sha256), Some(Moment::at(NOW)));
    assert!(matches!(edit(&made, &revoke("bob"), NOW), Err(Refused::NoOperator { .. })));
}
