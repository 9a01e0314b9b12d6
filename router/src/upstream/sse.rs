//! Server-sent events as an upstream sends them: bytes in, whole events out, never more than a bound in memory.

use bytes::{Buf as _, BytesMut};

/// Bytes that an event may have.
pub(super) const EVENT_LIMIT: usize = 1 << 20;

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// Empty where it has none.
    pub(super) name: Vec<u8>,
    /// Its data lines, joined.
    pub(super) data: Vec<u8>,
}

/// An event is over the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Cuts a body into events, whatever the borders of its pieces. Lines end with LF or CR LF; a lone CR, which the
/// standard also has and JSON takes for a blank, is data.
#[derive(Debug, Default)]
pub(super) struct Events {
    pending: BytesMut,
    /// Bytes of `pending` that hold no line's end.
    scanned: usize,
    event: Event,
}

impl Events {
    /// Takes a piece of the body. The events in it are to be taken before the next piece.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole event with data; None where more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Event>, TooLong> {
        while let Some(end) = self.pending[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(self.scanned + end);
            self.pending.advance(1);
            self.scanned = 0;
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    return Ok(Some(event));
                }
            } else {
                self.event.line(line)?;
            }
        }
        self.scanned = self.pending.len();
        if self.scanned + self.event.data.len() > EVENT_LIMIT { Err(TooLong) } else { Ok(None) }
    }
}

impl Event {
    fn line(&mut self, line: &[u8]) -> Result<(), TooLong> {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"event" => self.name = value.to_vec(),
            b"data" => {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            // Comments have no name; ids and retry times are for clients that reconnect.
            _ => {}
        }
        if self.data.len() > EVENT_LIMIT { Err(TooLong) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let (mut events, mut seen) = (Events::default(), Vec::new());
        for piece in pieces {
            events.push(piece);
            while let Some(Event { name, data }) = events.next().unwrap() {
                seen.push((String::from_utf8(name).unwrap(), String::from_utf8(data).unwrap()));
            }
        }
        seen
    }

    #[test]
    fn borders_of_pieces_do_not_matter() {
        let body = "data: {\"a\":\"é\"}\r\n\r\n: ping\n\nid: 7\nevent: x\ndata:two\ndata:  three\n\nevent: y\n\nhalf\n\ndata: [D";
        let expected = [("", "{\"a\":\"é\"}"), ("x", "two\n three")];
        let expected = expected.map(|(name, data)| (name.to_owned(), data.to_owned()));
        for cut in 0..body.len() {
            let (front, back) = body.as_bytes().split_at(cut);
            assert_eq!(read(&[front, back]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn no_event_takes_more_than_the_limit() {
        let line = [b"data: ".as_slice(), &vec![b'x'; EVENT_LIMIT / 2 - 1], b"\n"].concat();
        let mut events = Events::default();
        events.push(&line);
        assert_eq!(events.next(), Ok(None));
        events.push(&line);
        assert_eq!(events.next(), Ok(None));
        events.push(&line);
        assert_eq!(events.next(), Err(TooLong));

        let mut endless = Events::default();
        endless.push(&vec![b'x'; EVENT_LIMIT]);
        assert_eq!(endless.next(), Ok(None));
        endless.push(b"x");
        assert_eq!(endless.next(), Err(TooLong));
    }
}
