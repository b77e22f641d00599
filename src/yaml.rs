//! YAML for `-o yaml`: the same document as the JSON one, in block style.
//!
//! Written by hand because it is all that is needed of YAML: maps, sequences and scalars out of a
//! `serde_json::Value` (`docs/decisions/012-yaml.md`). Strings that a reader could take for
//! something else are quoted as in JSON, which YAML 1.2 reads alike.

use serde_json::Value;

/// The document, with a newline at its end.
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

/// A value that begins on a line of its own.
fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, v) in map {
                out.push_str(&pad);
                out.push_str(&text(key));
                out.push(':');
                rest(v, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for v in items {
                let mut item = String::new();
                block(v, indent + 2, &mut item);
                // The dash takes the place of the first line's indent.
                out.push_str(&pad);
                out.push_str("- ");
                out.push_str(item.trim_start());
            }
        }
        scalar => {
            out.push_str(&pad);
            out.push_str(&one_line(scalar));
            out.push('\n');
        }
    }
}

/// What comes after a key.
fn rest(value: &Value, indent: usize, out: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        block(value, indent + 2, out);
    } else {
        out.push(' ');
        out.push_str(&one_line(value));
        out.push('\n');
    }
}

fn one_line(value: &Value) -> String {
    match value {
        Value::String(s) => text(s),
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        other => other.to_string(),
    }
}

/// Plain where it can be taken for nothing but a string.
fn text(s: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
    let word = s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    // What some reader takes for a truth value, for nothing, or for a number.
    let taken = [
        "true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf",
    ];
    if word && s.chars().all(plain) && !taken.contains(&s.to_ascii_lowercase().as_str()) {
        return s.to_owned();
    }
    Value::String(s.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_is_written_in_blocks_and_strings_stay_strings() {
        let value = json!({
            "by": "pve1",
            "drained": false,
            "nodes": [
                { "node": "no", "addresses": ["10.0.0.1:7100"], "none": [], "why": null },
                [1, [2, 3]],
                {},
            ],
            "odd key": "a: b # c",
            "number": "12",
            "lines": "one\ntwo",
            "nested": { "deep": { "er": 1.5 } },
        });
        let mut lines: Vec<String> = document(&value).lines().map(str::to_owned).collect();
        lines.sort();
        let mut wanted = vec![
            "by: pve1",
            "drained: false",
            "lines: \"one\\ntwo\"",
            "nested:",
            "  deep:",
            "    er: 1.5",
            "nodes:",
            "  - addresses:",
            "      - \"10.0.0.1:7100\"",
            "    node: \"no\"",
            "    none: []",
            "    why: null",
            "  - - 1",
            "    - - 2",
            "      - 3",
            "  - {}",
            "number: \"12\"",
            "\"odd key\": \"a: b # c\"",
        ];
        wanted.sort_unstable();
        assert_eq!(lines, wanted);
        assert_eq!(document(&json!("x")), "x\n");
        assert_eq!(document(&json!([])), "[]\n");
    }
}
