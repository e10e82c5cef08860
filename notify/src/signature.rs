//! Signatures, by which a receiver knows that a notice is ours and fresh.
//!
//! `Tidegate-Signature: t=1363000000,v1=HEX`: the time in seconds since 1970, and the HMAC-SHA256, under the secret that both
//! sides know, of that time as text, a full stop, and the body byte by byte. The time is in it so that a recorded request
//! cannot be sent again later; `v1` so that another scheme can one day stand beside it.

use ring::hmac;

/// The value of the header for `body`, sent at `seconds` since 1970.
pub fn sign(secret: &[u8], seconds: i64, body: &[u8]) -> String {
    let mut signing = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    signing.update(seconds.to_string().as_bytes());
    signing.update(b".");
    signing.update(body);
    let hex: String = signing.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by `hmac.new(b"secret", b'1363000000.{"id":"1"}', hashlib.sha256).hexdigest()`, as receivers do.
    #[test]
    fn a_signature_is_what_receivers_compute() {
        let signature = sign(b"secret", 1_363_000_000, br#"{"id":"1"}"#);
        assert_eq!(signature, "t=1363000000,v1=4587a495492adb3e66758e199837c3fc1500fe382956d0b09a551d0efbd82213");
        assert_ne!(signature, sign(b"secret", 1_363_000_001, br#"{"id":"1"}"#));
        assert_ne!(signature, sign(b"other", 1_363_000_000, br#"{"id":"1"}"#));
    }
}
