//! One 512-byte header block of a tar archive: its fields, its numbers, its checksum (POSIX ustar, GNU tar manual).

/// Length of a block.
pub(crate) const BLOCK: usize = 512;

/// A block whose checksum holds.
pub(crate) struct Block(pub [u8; BLOCK]);

/// What is wrong with a block.
pub(crate) type Fault = &'static str;

impl Block {
    /// Whether all of it is zero: two such blocks end an archive.
    pub fn is_zero(bytes: &[u8; BLOCK]) -> bool {
        bytes.iter().all(|byte| *byte == 0)
    }

    /// Checks the checksum, which old archivers computed over signed bytes.
    pub fn checked(bytes: &[u8; BLOCK]) -> Result<Block, Fault> {
        let stored = number(&bytes[148..156])?;
        let mut unsigned = 0i64;
        let mut signed = 0i64;
        for (place, byte) in bytes.iter().enumerate() {
            let byte = if (148..156).contains(&place) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if stored == unsigned || stored == signed { Ok(Block(*bytes)) } else { Err("a header's checksum is wrong") }
    }

    pub fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub fn size(&self) -> Result<u64, Fault> {
        u64::try_from(number(&self.0[124..136])?).map_err(|_| "a size is negative")
    }

    pub fn permissions(&self) -> Result<u16, Fault> {
        Ok((number(&self.0[100..108])? & 0o7777) as u16)
    }

    pub fn uid(&self) -> Result<i64, Fault> {
        number(&self.0[108..116])
    }

    pub fn gid(&self) -> Result<i64, Fault> {
        number(&self.0[116..124])
    }

    pub fn mtime(&self) -> Result<i64, Fault> {
        number(&self.0[136..148])
    }

    pub fn device(&self) -> Result<(u32, u32), Fault> {
        let part = |field| u32::try_from(number(field)?).map_err(|_| "a device number is out of range");
        Ok((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }

    pub fn link_name(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    /// Name, with the prefix where the format has one.
    pub fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let posix = self.0[257..263] == *b"ustar\0";
        let star = posix && self.0[508..512] == *b"tar\0";
        let prefix = text(if star { &self.0[345..476] } else { &self.0[345..500] });
        if !posix || prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Whether the fields of GNU's own format are there.
    pub fn is_gnu(&self) -> bool {
        self.0[257..265] == *b"ustar  \0"
    }
}

/// The bytes up to the first zero.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, or in base 256 when the first bit is set (two's complement, big endian). An empty field
/// is 0.
pub(crate) fn number(field: &[u8]) -> Result<i64, Fault> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Result<i64, Fault> {
    const WRONG: Fault = "a number is not octal";
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
    if digits[end..].iter().any(|byte| !matches!(byte, b' ' | 0)) {
        return Err(WRONG);
    }
    // Twelve octal digits are 36 bits.
    digits[..end].iter().try_fold(0, |value: i64, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | i64::from(digit - b'0')),
        _ => Err(WRONG),
    })
}

fn base_256(field: &[u8]) -> Result<i64, Fault> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { i128::from(field[0] as i8) } else { i128::from(field[0] & 0x7f) };
    // At most twelve bytes are 96 bits.
    let value = field[1..].iter().fold(first, |value, byte| value << 8 | i128::from(*byte));
    i64::try_from(value).map_err(|_| "a number is out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_octal_as_archivers_write_it() {
        assert_eq!(number(b"0000755\0"), Ok(0o755));
        assert_eq!(number(b"   755 \0"), Ok(0o755));
        assert_eq!(number(b"77777777"), Ok(0o77_777_777));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert!(number(b"00008\0\0\0").is_err());
        assert!(number(b"12\x003\0\0\0\0").is_err());
        assert!(number(b"-1\0\0\0\0\0\0").is_err());
    }

    #[test]
    fn reads_base_256_with_sign() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Ok(258));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]), Ok(-256));
        assert!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
