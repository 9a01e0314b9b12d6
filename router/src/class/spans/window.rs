//! The part of a text that rules still look at, in NFKC, with where each of its bytes came from.

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::canonical_combining_class;
use unicode_normalization::{IsNormalized, is_nfkc_quick};

use super::super::fold::plain;

/// Characters that are normalised together: a letter has no more marks in any language.
const CLUSTER: usize = 16;

#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// In NFKC.
    text: String,
    /// Where its stretches came from, in order, from its beginning on.
    runs: Vec<Run>,
    /// Bytes of the whole text that are in NFKC by now.
    end: usize,
    /// The last character, and its marks, as it came: the next one may be another mark.
    last: String,
}

/// A stretch of the window.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Where it begins in the window.
    text: usize,
    /// Where it begins in the whole text.
    origin: usize,
    /// Whether it is as it came, byte by byte. Else it is one character with its marks.
    plain: bool,
}

impl Window {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of the whole text.
    pub(super) fn total(&self) -> usize {
        self.end + self.last.len()
    }

    pub(super) fn push(&mut self, mut piece: &str) {
        while let Some(first) = piece.chars().next() {
            let known = if piece.is_ascii() {
                piece.len()
            } else {
                piece.find(|character| plain(character) != Some(character)).unwrap_or(piece.len())
            };
            if let Some((last, _)) = piece[..known].char_indices().next_back() {
                self.settle();
                self.add(&piece[..last]);
                self.last.push_str(&piece[last..known]);
                piece = &piece[known..];
                continue;
            }
            if begins(first) || self.last.chars().count() >= CLUSTER {
                self.settle();
            }
            self.last.push(first);
            piece = &piece[first.len_utf8()..];
        }
    }

    /// Takes the last character as it is, whatever comes.
    pub(super) fn settle(&mut self) {
        let last = std::mem::take(&mut self.last);
        let mut characters = last.chars();
        match (characters.next(), characters.next()) {
            (None, _) => {}
            (Some(only), None) if plain(only) == Some(only) => self.add(&last),
            (Some(_), _) => {
                self.runs.push(Run { text: self.text.len(), origin: self.end, plain: false });
                self.text.extend(last.nfkc());
                self.end += last.len();
            }
        }
    }

    /// Adds what NFKC leaves as it is.
    fn add(&mut self, known: &str) {
        if known.is_empty() {
            return;
        }
        if self.runs.last().is_none_or(|run| !run.plain) {
            self.runs.push(Run { text: self.text.len(), origin: self.end, plain: true });
        }
        self.text.push_str(known);
        self.end += known.len();
    }

    fn run(&self, at: usize) -> Option<usize> {
        self.runs.partition_point(|run| run.text <= at).checked_sub(1)
    }

    /// Where what stands at a place of the window begins in the whole text.
    pub(super) fn start(&self, at: usize) -> usize {
        match self.run(at) {
            _ if at >= self.text.len() => self.end,
            Some(run) if self.runs[run].plain => self.runs[run].origin + at - self.runs[run].text,
            Some(run) => self.runs[run].origin,
            None => 0,
        }
    }

    /// Where what stands before a place of the window ends in the whole text.
    pub(super) fn end(&self, at: usize) -> usize {
        match self.run(at) {
            _ if at >= self.text.len() => self.end,
            Some(run) if self.runs[run].plain => self.runs[run].origin + at - self.runs[run].text,
            Some(run) if self.runs[run].text == at => self.runs[run].origin,
            Some(run) => self.runs.get(run + 1).map_or(self.end, |next| next.origin),
            None => 0,
        }
    }

    /// The first place from `at` on that begins a character and has no more than `limit` bytes of the text behind it.
    pub(super) fn at_least(&self, at: usize, limit: usize) -> usize {
        let mut at = at.min(self.text.len());
        if self.total() - self.start(at) <= limit {
            return at;
        }
        let least = self.total() - limit;
        if least >= self.end {
            return self.text.len();
        }
        let run = self.runs.partition_point(|run| run.origin <= least).saturating_sub(1);
        let Run { text, origin, plain } = self.runs[run];
        at = match plain {
            true => text + (least - origin),
            false if origin == least => text,
            false => self.runs.get(run + 1).map_or(self.text.len(), |next| next.text),
        };
        while !self.text.is_char_boundary(at) {
            at += 1;
        }
        at
    }

    /// Drops the window's beginning, up to a place or a little before it. Returns how much that was.
    pub(super) fn forget(&mut self, until: usize) -> usize {
        let Some(run) = self.run(until) else { return 0 };
        let first = &mut self.runs[run];
        let mut gone = if first.plain { until } else { first.text };
        while !self.text.is_char_boundary(gone) {
            gone -= 1;
        }
        if first.plain {
            first.origin += gone.saturating_sub(first.text);
            first.text = first.text.max(gone);
        }
        self.runs.drain(..run);
        self.runs.iter_mut().for_each(|run| run.text -= gone);
        self.text.drain(..gone);
        gone
    }
}

/// Whether NFKC never joins a character to what stands before it.
fn begins(character: char) -> bool {
    if plain(character).is_some() {
        return true;
    }
    let first = std::iter::once(character).nfkc().next().unwrap_or(character);
    let alone = is_nfkc_quick(std::iter::once(first)) == IsNormalized::Yes;
    alone && canonical_combining_class(first) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_nfkc_in_whatever_pieces_it_comes(
            text in r"(\PC|[a-zA-Z０-９，。　가-힣ᄀ-하-ᅵᆨ-ᇂが゙ﾞ́̈ﬁ①é中]){0,40}",
            cuts in prop::collection::vec(0..40_usize, 0..5),
        ) {
            let mut window = Window::default();
            let characters: Vec<char> = text.chars().collect();
            let mut from = 0;
            let mut cuts = cuts;
            cuts.sort_unstable();
            for cut in cuts.into_iter().chain([characters.len()]).map(|cut| cut.min(characters.len())) {
                let piece: String = characters[from.min(cut)..cut].iter().collect();
                from = from.max(cut);
                window.push(&piece);
            }
            window.settle();
            prop_assert_eq!(window.text(), text.nfkc().collect::<String>());
            prop_assert_eq!(window.total(), text.len());
            // Where each stretch came from is the text that it was made of.
            for (at, run) in window.runs.iter().enumerate() {
                let next = window.runs.get(at + 1);
                let (end, origin) = next.map_or((window.text.len(), text.len()), |next| (next.text, next.origin));
                let folded: String = text[run.origin..origin].nfkc().collect();
                prop_assert_eq!(&window.text[run.text..end], folded.as_str());
            }
        }
    }
}
