//! Which domain an e-mail address belongs to.

/// The domain of an address, or `None` when the address can be read in two ways: with more than one
/// unquoted `@`, an empty local part or domain, control characters, or a stray quote.
///
/// `"a@b"@corp.test` has a quoted local part (RFC 5321, section 4.1.2) and belongs to `corp.test`.
pub(crate) fn domain(address: &str) -> Option<&str> {
    if address.chars().any(char::is_control) {
        return None;
    }
    let domain = if let Some(rest) = address.strip_prefix('"') {
        after_quoted_local_part(rest)?
    } else {
        let (local, domain) = address.split_once('@')?;
        if local.is_empty() || local.contains('"') {
            return None;
        }
        domain
    };
    (!domain.is_empty() && !domain.contains(['@', '"'])).then_some(domain)
}

/// `rest` begins behind the opening quote.
fn after_quoted_local_part(rest: &str) -> Option<&str> {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' if at == 0 => return None,
            '"' => return rest.get(at + 1..)?.strip_prefix('@'),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s36_plain_and_quoted_addresses_have_a_domain() {
        for (address, expected) in [
            ("ann@corp.test", "corp.test"),
            ("Ann@CORP.test", "CORP.test"),
            ("ann+x@corp.test", "corp.test"),
            ("ann@corp.test.", "corp.test."),
            ("ann@[192.0.2.1]", "[192.0.2.1]"),
            ("\"a@b\"@corp.test", "corp.test"),
            ("\"a\\\"@b\"@corp.test", "corp.test"),
            ("\" \"@corp.test", "corp.test"),
        ] {
            assert_eq!(domain(address), Some(expected), "{address}");
        }
    }

    #[test]
    fn s36_addresses_that_can_be_read_in_two_ways_have_none() {
        for address in [
            "",
            "ann",
            "@",
            "@corp.test",
            "ann@",
            "ann@evil.test@corp.test",
            "ann@@corp.test",
            "ann@corp.test@",
            "\"ann@evil.test@corp.test",
            "\"a@b\"x@corp.test",
            "\"a\"@evil.test@corp.test",
            "\"a\"",
            "\"\"@corp.test",
            "\"a\\\"@corp.test",
            "a\"@evil.test\"@corp.test",
            "ann@evil.test\"@corp.test\"",
            "ann@corp.test\n",
            "ann\0@corp.test",
            "ann\u{85}@corp.test",
            "eve@evil.test <ann@corp.test>",
        ] {
            assert_eq!(domain(address), None, "{address:?}");
        }
    }
}
