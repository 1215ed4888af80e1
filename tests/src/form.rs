//! Reads the one form of a page, as far as tests fill it in.

use crate::person::{Answer, Person};

/// Where the first form of a page goes, and its hidden fields.
#[derive(Debug)]
pub struct Form {
    action: url::Url,
    hidden: Vec<(String, String)>,
}

impl Form {
    pub fn of(page: &Answer) -> Self {
        let text = page.text();
        let form = between(&text, "<form", "</form>")
            .unwrap_or_else(|| panic!("{} has no form: {} {text}", page.url, page.status));
        let head = form.split('>').next().unwrap_or_default();
        let action = attribute(head, "action").unwrap_or_default();
        let hidden = form
            .split("<input")
            .skip(1)
            .filter_map(|input| input.split('>').next())
            .filter(|input| attribute(input, "type").as_deref() == Some("hidden"))
            .filter_map(|input| Some((attribute(input, "name")?, attribute(input, "value")?)))
            .collect();
        Self {
            action: page.url.join(&action).expect("an action is a URL"),
            hidden,
        }
    }

    /// Sends it, with `fields` beside the hidden ones.
    pub async fn send(&self, person: &Person, fields: &[(&str, &str)]) -> Answer {
        let answer = self.try_send(person, fields).await;
        answer.unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::send`], but a failure is an outcome.
    pub async fn try_send(
        &self,
        person: &Person,
        fields: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let all: Vec<_> = self
            .hidden
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .chain(fields.iter().copied())
            .collect();
        person.post_form(self.action.as_str(), &all).await
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inside, _)| inside)
}

/// The value of an attribute, with the few entities undone that askama writes.
fn attribute(tag: &str, name: &str) -> Option<String> {
    let value = between(tag, &format!(" {name}=\""), "\"")?;
    Some(
        value
            .replace("&#38;", "&")
            .replace("&amp;", "&")
            .replace("&#39;", "'")
            .replace("&#34;", "\"")
            .replace("&quot;", "\"")
            .replace("&#60;", "<")
            .replace("&#62;", ">"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_and_unescaped() {
        let tag = r#" type="hidden" name="q" value="a&#38;b""#;
        assert_eq!(attribute(tag, "value").as_deref(), Some("a&b"));
        assert_eq!(attribute(tag, "id"), None);
    }
}
