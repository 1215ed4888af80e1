//! Just enough of WebSocket (RFC 6455) to end one politely: where in the stream towards the
//! client a close frame may stand, and what it looks like. Pure.

/// Going away: the server is shutting down.
pub(crate) const GOING_AWAY: u16 = 1001;

/// The session behind the connection is no longer allowed.
pub(crate) const POLICY_VIOLATION: u16 = 1008;

/// Follows the frames that a server sends (unmasked) and knows where one ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frames {
    header: [u8; 10],
    have: usize,
    /// Bytes of the current frame's payload still to come.
    payload: u64,
    /// The last frame of a message is complete, so no fragment is pending.
    closed: bool,
}

impl Frames {
    /// Takes note of bytes that went to the client.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let here = usize::try_from(self.payload)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.payload -= u64::try_from(here).unwrap_or(0);
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            if let [first, rest @ ..] = bytes {
                if let Some(slot) = self.header.get_mut(self.have) {
                    *slot = *first;
                    self.have += 1;
                }
                bytes = rest;
                self.end_of_header();
            }
        }
    }

    fn end_of_header(&mut self) {
        let [opcode, length, rest @ ..] = self.header;
        let extended = match length & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        // A mask from a server is an error that the client will find.
        if self.have < 2 || self.have < 2 + extended {
            return;
        }
        let bytes = rest.get(..extended).unwrap_or_default();
        self.payload = match extended {
            0 => u64::from(length & 0x7f),
            _ => bytes.iter().fold(0, |n, byte| (n << 8) | u64::from(*byte)),
        };
        self.have = 0;
        if opcode & 0x0f == 8 {
            self.closed = true;
        }
    }

    /// Whether a control frame may stand here.
    pub(crate) fn at_boundary(&self) -> bool {
        self.have == 0 && self.payload == 0 && !self.closed
    }
}

/// A close frame as a server sends it. The reason is cut to what a control frame holds.
pub(crate) fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let reason = reason.as_bytes();
    let reason = reason.get(..reason.len().min(123)).unwrap_or_default();
    let length = u8::try_from(reason.len() + 2).unwrap_or(2);
    let mut frame = vec![0x88, length];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(reason);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | opcode];
        match payload.len() {
            n @ 0..=125 => out.push(u8::try_from(n).unwrap()),
            n @ 126..=65535 => {
                out.push(126);
                out.extend_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
            }
            n => {
                out.push(127);
                out.extend_from_slice(&u64::try_from(n).unwrap().to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn a_close_frame_is_small() {
        assert_eq!(close_frame(GOING_AWAY, "bye"), b"\x88\x05\x03\xe9bye");
        assert_eq!(close_frame(POLICY_VIOLATION, &"x".repeat(500)).len(), 127);
    }

    #[test]
    fn nothing_follows_a_close_frame() {
        let mut frames = Frames::default();
        assert!(frames.at_boundary());
        frames.pass(&close_frame(1000, ""));
        assert!(!frames.at_boundary());
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_bytes_arrive(
            lengths in proptest::collection::vec(prop_oneof![0..200usize, 65000..67000usize], 1..5),
            step in 1..70000usize,
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|n| frame(2, &vec![7; *n])).collect();
            let mut frames = Frames::default();
            for chunk in stream.chunks(step) {
                frames.pass(chunk);
            }
            prop_assert!(frames.at_boundary());
            frames.pass(&[0x82, 126, 0]);
            prop_assert!(!frames.at_boundary());
        }
    }
}
