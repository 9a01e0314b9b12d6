//! Server-sent events as a client reads them: bytes in, the data of whole events out.

/// Cuts a body into the data of its events, whatever the borders of its pieces.
#[derive(Default)]
pub(crate) struct Events {
    pending: Vec<u8>,
}

impl Events {
    /// Takes a piece of the body and returns the data lines that it completes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let scanned = self.pending.len();
        self.pending.extend_from_slice(bytes);
        let Some(end) = self.pending[scanned..].iter().rposition(|byte| *byte == b'\n').map(|at| scanned + at + 1)
        else {
            return Vec::new();
        };
        let rest = self.pending.split_off(end);
        let whole = std::mem::replace(&mut self.pending, rest);
        let data = |line: &[u8]| {
            let line = String::from_utf8_lossy(line);
            line.strip_prefix("data:").map(|data| data.trim().to_owned())
        };
        whole.split(|byte| *byte == b'\n').filter_map(data).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Events;

    #[test]
    fn borders_of_pieces_do_not_matter() {
        let body = "data: {\"a\":\"é\"}\n\n: keep-alive\n\nevent: x\ndata: two\n\ndata: [DONE]\n\n".as_bytes();
        for cut in 0..body.len() {
            let mut events = Events::default();
            let mut seen = events.push(&body[..cut]);
            seen.extend(events.push(&body[cut..]));
            assert_eq!(seen, ["{\"a\":\"é\"}", "two", "[DONE]"], "cut at {cut}");
        }
    }
}
