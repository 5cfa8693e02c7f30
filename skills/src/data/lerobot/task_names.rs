//! Names for tasks whose text may be anything, such as "Pick up the red cube."
//!
//! A text that is a name stays as it is. Any other becomes lower case with dashes; one that is too long, or has
//! nothing left, ends in eight digits of its hash. The same text has the same name in every dataset.

use zunft_protocol::ids::{Digest, IdError, TaskName};
use zunft_protocol::limits::NAME_BYTES_MAX;

/// Digits of the hash where a text alone makes no name: 4 billion to one against a clash.
const HASH_DIGITS: usize = 8;

/// The name of the task that is described by `text`.
pub(super) fn task_name(text: &str) -> Result<TaskName, IdError> {
    if let Ok(name) = text.parse() {
        return Ok(name);
    }
    let mut slug = String::new();
    for character in text.chars().flat_map(char::to_lowercase) {
        match character {
            'a'..='z' | '0'..='9' => slug.push(character),
            '-' | '_' | '.' if !slug.is_empty() => slug.push(character),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
    }
    slug.truncate(slug.trim_end_matches(['-', '_', '.']).len());
    if slug.is_empty() || slug.len() > NAME_BYTES_MAX {
        slug.truncate(NAME_BYTES_MAX - HASH_DIGITS - 1);
        if slug.is_empty() {
            slug.push_str("task");
        }
        let digest = Digest::of(text.as_bytes()).to_string();
        slug = format!("{slug}-{}", &digest[..HASH_DIGITS]);
    }
    slug.parse()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_become_readable_names() {
        let check = |text: &str, expected: &str| assert_eq!(task_name(text).unwrap().as_str(), expected);
        check("reach-v3", "reach-v3");
        check("Pick up the red cube.", "pick-up-the-red-cube");
        check("  Öffne die Tür! ", "ffne-die-t-r");
        check("a/b", "a-b");
        let long = task_name(&"put the block into the box and then ".repeat(3)).unwrap();
        assert_eq!(long.as_str().len(), NAME_BYTES_MAX);
        assert!(long.as_str().starts_with("put-the-block-into-the-box"));
        assert!(task_name("把方块放进盒子").unwrap().as_str().starts_with("task-"));
        assert_ne!(task_name("把方块放进盒子").unwrap(), task_name("打开门").unwrap());
    }

    proptest! {
        #[test]
        fn every_text_has_a_name(text in ".*") {
            prop_assert!(task_name(&text).is_ok());
        }
    }
}
