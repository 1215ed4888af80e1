//! Names one write to the databroker, so that it is done once however often it is asked for.
//!
//! Who gets no answer may ask again, at another databroker too; what a frozen one still had before
//! it then comes to nothing.

use tonic::Request;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The metadata that carries it, in hexadecimal digits. Servers that do not know it write as often
/// as they are asked.
pub(super) const HEADER: &str = "x-postern-write-id";

/// Names a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriteId([u8; 16]);

impl WriteId {
    /// Another one each time.
    pub fn random() -> Self {
        Self(crate::crypto::random::bytes())
    }

    /// What [`Self::as_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Names the write that a request asks for.
    pub fn attach<T>(self, request: &mut Request<T>) {
        if let Ok(value) = MetadataValue::<Ascii>::try_from(hex::encode(self.0)) {
            request.metadata_mut().insert(HEADER, value);
        }
    }

    /// That of a request, if it has one.
    pub fn of(metadata: &MetadataMap) -> Option<Self> {
        let bytes = hex::decode(metadata.get(HEADER)?.as_bytes()).ok()?;
        Self::from_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_is_found() {
        let id = WriteId::random();
        let mut request = Request::new(());
        assert_eq!(WriteId::of(request.metadata()), None);
        id.attach(&mut request);
        assert_eq!(WriteId::of(request.metadata()), Some(id));
        for other in ["", "xy", "00", &"0".repeat(34)] {
            let other = MetadataValue::try_from(other).unwrap();
            request.metadata_mut().insert(HEADER, other);
            assert_eq!(WriteId::of(request.metadata()), None);
        }
    }
}
