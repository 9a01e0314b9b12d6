//! Schemas that no finite text is valid by, because they go into themselves whatever is written.

use std::collections::BTreeSet;

use serde_json::Value;

/// The `$ref` at which a schema goes into itself on a way that every text must take; None where there is none. Ways of
/// which a text need only take one of several are not followed.
pub(super) fn endless(schema: &Value) -> Option<&str> {
    Walk { root: schema, way: vec!["#"], ends: BTreeSet::new() }.walk(schema)
}

struct Walk<'a> {
    root: &'a Value,
    /// References that are being followed.
    way: Vec<&'a str>,
    /// References that were followed to their ends.
    ends: BTreeSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn walk(&mut self, schema: &'a Value) -> Option<&'a str> {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str)
            && let Some(found) = self.follow(reference)
        {
            return Some(found);
        }
        needed(schema).into_iter().find_map(|part| self.walk(part))
    }

    fn follow(&mut self, reference: &'a str) -> Option<&'a str> {
        if self.way.contains(&reference) {
            return Some(reference);
        }
        // One that leads nowhere is the compiler's to complain about.
        let target = self.root.pointer(reference.strip_prefix('#')?)?;
        if self.ends.contains(reference) {
            return None;
        }
        self.way.push(reference);
        let found = self.walk(target);
        self.way.pop();
        self.ends.insert(reference);
        found
    }
}

/// The schemas that some part of every text must be valid by.
fn needed(schema: &Value) -> Vec<&Value> {
    let list = |key: &str| schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut needed: Vec<&Value> = list("allOf").iter().collect();
    for either in ["anyOf", "oneOf"].map(list) {
        if let [only] = either {
            needed.push(only);
        }
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            let property = |name: &Value| schema.get("properties")?.get(name.as_str()?);
            needed.extend(list("required").iter().filter_map(property));
        }
        Some("array") => {
            let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
            let least = usize::try_from(least).unwrap_or(usize::MAX);
            let first = list("prefixItems");
            needed.extend(first.iter().take(least));
            needed.extend(schema.get("items").filter(|_| least > first.len()));
        }
        Some(_) | None => {}
    }
    needed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_must_go_into_itself_is_found_and_what_may_is_not() {
        let object = |required: &[&str], next: Value| json!({ "type": "object", "properties": { "next": next }, "required": required });
        let own = json!({ "$ref": "#" });
        let definition = |node: Value| json!({ "$defs": { "node": node }, "$ref": "#/$defs/node" });
        for (schema, found) in [
            (own.clone(), Some("#")),
            (object(&["next"], own.clone()), Some("#")),
            (object(&[], own.clone()), None),
            (object(&["next"], json!({ "anyOf": [own, { "type": "null" }] })), None),
            (definition(object(&["next"], json!({ "$ref": "#/$defs/node" }))), Some("#/$defs/node")),
            (definition(object(&["next"], json!({ "type": "array", "items": { "$ref": "#/$defs/node" } }))), None),
            (
                definition(json!({ "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/node" } })),
                Some("#/$defs/node"),
            ),
            (
                definition(json!({ "type": "array", "minItems": 1, "prefixItems": [{}], "items": { "$ref": "#" } })),
                None,
            ),
            (definition(json!({ "allOf": [{ "type": "object" }, { "$ref": "#/$defs/node" }] })), Some("#/$defs/node")),
            (json!({ "$ref": "#/$defs/none" }), None),
            (json!({ "allOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }], "$defs": { "a": {} } }), None),
        ] {
            assert_eq!(endless(&schema), found, "{schema}");
        }
    }
}
