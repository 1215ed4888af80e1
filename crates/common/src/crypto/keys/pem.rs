//! Splits PEM text (RFC 7468) into blocks, whatever their labels.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// One block: its label, for messages, and its DER content.
pub(super) struct Block {
    pub(super) label: String,
    pub(super) der: zeroize::Zeroizing<Vec<u8>>,
}

/// Reads all blocks of `text`; what stands outside of blocks is ignored. `Err` names the number,
/// from 1, of a block that isn't closed or isn't base64.
pub(super) fn blocks(text: &str) -> Result<Vec<Block>, usize> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line
            .strip_prefix("-----BEGIN ")
            .and_then(|l| l.strip_suffix("-----"))
        else {
            continue;
        };
        let number = blocks.len() + 1;
        let end = format!("-----END {label}-----");
        let mut content = zeroize::Zeroizing::new(String::new());
        loop {
            match lines.next() {
                None => return Err(number),
                Some(line) if line == end => break,
                // Headers such as `Proc-Type: 4,ENCRYPTED` are no base64, so an encrypted key
                // fails below with the number of its block.
                Some(line) => content.push_str(line),
            }
        }
        let der = STANDARD.decode(content.as_bytes()).map_err(|_| number)?;
        blocks.push(Block {
            label: label.to_owned(),
            der: zeroize::Zeroizing::new(der),
        });
    }
    Ok(blocks)
}
