//! libpq's connection strings of keywords: `host=a port = 5432 password='it\'s'`.

use std::iter::Peekable;
use std::str::Chars;

/// The parameters of a string of pairs, in their order. The error never shows a value.
pub fn keywords(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut pairs = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        skip_space(&mut rest);
        if rest.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = rest.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        skip_space(&mut rest);
        if key.is_empty() || rest.next() != Some('=') {
            return Err("a key is not followed by =");
        }
        skip_space(&mut rest);
        pairs.push((key, value(&mut rest)?));
    }
}

fn value(rest: &mut Peekable<Chars<'_>>) -> Result<String, &'static str> {
    let quoted = rest.next_if_eq(&'\'').is_some();
    let mut value = String::new();
    loop {
        match rest.next() {
            Some('\'') if quoted => return Ok(value),
            Some('\\') => value.extend(rest.next()),
            Some(c) if c.is_whitespace() && !quoted => return Ok(value),
            Some(c) => value.push(c),
            None if quoted => return Err("a quote is not closed"),
            None => return Ok(value),
        }
    }
}

fn skip_space(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|c| c.is_whitespace()).is_some() {}
}
