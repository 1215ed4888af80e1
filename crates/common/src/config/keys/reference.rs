//! The reference documentation, made from the tables.

use std::fmt::Write as _;

use super::{GLOBAL, Key, Kind, ROUTE, State};

/// A Markdown page with every key.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Keys of the configuration\n\nMade from `crates/common/src/config/keys`; do not edit.\n",
    );
    table(&mut page, "Global", GLOBAL);
    table(&mut page, "Routes", ROUTE);
    for key in GLOBAL.iter().chain(ROUTE) {
        if let Kind::Object(keys) | Kind::Objects(keys) = key.kind {
            let title = format!("`{}`", key.name);
            if !page.contains(&format!("## {title}\n")) {
                table(&mut page, &title, keys);
            }
        }
    }
    page
}

fn table(page: &mut String, title: &str, keys: &[Key]) {
    let _ = write!(
        page,
        "\n## {title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n"
    );
    for key in keys {
        let state = match key.state {
            State::Works => String::new(),
            State::NotYet => " **Not supported yet.**".to_owned(),
            State::Refused(why) => format!(" **Not supported yet** and refused: {why}."),
            State::Ignored(why) => format!(" **Accepted and ignored**: {why}."),
            State::Removed(instead) => format!(" **Removed**: {instead}."),
        };
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {}.{state} |",
            key.name,
            key.kind.words(),
            key.default,
            key.meaning
        );
    }
}

#[cfg(test)]
mod tests {
    /// The page in the repository; `BLESS=1` writes it anew.
    #[test]
    fn the_page_is_up_to_date() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(file, super::markdown()).unwrap();
        }
        let page = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            page == super::markdown(),
            "docs/configuration.md is not what the tables give: run this test with BLESS=1"
        );
    }

    #[test]
    fn every_key_is_on_the_page() {
        let page = super::markdown();
        for key in super::GLOBAL.iter().chain(super::ROUTE) {
            assert!(
                page.contains(&format!("| `{}` |", key.name)),
                "{}",
                key.name
            );
        }
    }
}
