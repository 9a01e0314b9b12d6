//! Checksums of numbers, over ASCII digits and letters.

/// Luhn's checksum, ISO/IEC 7812-1 annex B.
pub(super) fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits.iter().rev().enumerate().map(|(at, digit)| doubled(at % 2 == 1, *digit)).sum();
    sum.is_multiple_of(10)
}

fn doubled(double: bool, digit: u8) -> u32 {
    let digit = u32::from(digit - b'0');
    match double {
        false => digit,
        true if digit > 4 => 2 * digit - 9,
        true => 2 * digit,
    }
}

/// Mod 97-10 of ISO 7064 over an IBAN: its first four characters count as if they were its last.
pub(super) fn mod97(iban: &[u8]) -> bool {
    let Some((head, tail)) = iban.split_at_checked(4) else { return false };
    let remainder = tail.iter().chain(head).try_fold(0_u32, |remainder, byte| match byte {
        b'0'..=b'9' => Some((remainder * 10 + u32::from(byte - b'0')) % 97),
        b'A'..=b'Z' => Some((remainder * 100 + u32::from(byte - b'A') + 10) % 97),
        b'a'..=b'z' => Some((remainder * 100 + u32::from(byte - b'a') + 10) % 97),
        _ => None,
    });
    remainder == Some(1)
}

/// The check character of a Chinese resident id, GB 11643-1999: mod 11-2 of ISO 7064 over 17 digits.
pub(super) fn resident_check(digits: &[u8]) -> u8 {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    const CHARACTERS: &[u8; 11] = b"10X98765432";
    let sum: u32 = digits.iter().zip(WEIGHTS).map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    CHARACTERS[sum as usize % 11]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_examples_pass_and_their_neighbours_do_not() {
        for card in ["4111111111111111", "5555555555554444", "378282246310005", "6011111111111117", "30569309025904"] {
            assert!(luhn(card.as_bytes()), "{card}");
            for at in 0..card.len() {
                let mut other = card.as_bytes().to_vec();
                other[at] = b'0' + (other[at] - b'0' + 1) % 10;
                assert!(!luhn(&other), "one digit differs");
            }
        }
        for iban in ["DE89370400440532013000", "GB82WEST12345698765432", "NO9386011117947", "gb82west12345698765432"] {
            assert!(mod97(iban.as_bytes()), "{iban}");
            let mut other = iban.as_bytes().to_vec();
            other.swap(2, 3);
            assert!(!mod97(&other));
        }
        assert!(!mod97(b"DE8") && !mod97(b"DE89 3704"));
        assert_eq!(resident_check(b"11010519491231002"), b'X');
        assert_eq!(resident_check(b"44052418800101001"), b'4');
    }
}
