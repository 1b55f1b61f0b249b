//! How a picture is cut into tiles that overlap.

use super::Border;

/// A rectangle of pixels; it may begin before the picture does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) left: i64,
    pub(super) top: i64,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// A part of the picture, and what the network reads to compute it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) own: Rect,
    pub(super) input: Rect,
}

/// Cuts a picture of `[width, height]`, both multiples of `multiple`, into tiles whose inputs are at
/// most about `room` pixels a side. An input is never less than three borders wide, however little
/// room there is: below that, more would be read twice than is gained.
pub(super) fn tiles([width, height]: [usize; 2], room: usize, border: Border, multiple: usize) -> Vec<Tile> {
    let margin = border.pixels().next_multiple_of(multiple);
    let core = room.saturating_sub(2 * margin).max(margin).max(multiple);
    let columns = spans(width, core, border, margin, multiple);
    let rows = spans(height, core, border, margin, multiple);
    let tile = |row: &Span, column: &Span| Tile {
        own: Rect { left: column.own.0, top: row.own.0, width: column.own.1, height: row.own.1 },
        input: Rect { left: column.input.0, top: row.input.0, width: column.input.1, height: row.input.1 },
    };
    rows.iter().flat_map(|row| columns.iter().map(move |column| tile(row, column))).collect()
}

/// Starts and lengths along one side.
struct Span {
    own: (i64, usize),
    input: (i64, usize),
}

/// Parts of about equal length, none longer than `core`, rounded up to the multiple.
fn spans(side: usize, core: usize, border: Border, margin: usize, multiple: usize) -> Vec<Span> {
    let units = side / multiple;
    let parts = side.div_ceil(core).clamp(1, units.max(1));
    let bound = |part: usize| units * part / parts * multiple;
    let span = |part: usize| {
        let (start, end) = (bound(part), bound(part + 1));
        let input = match border {
            Border::Picture(_) => {
                let first = start.saturating_sub(margin);
                (first as i64, side.min(end + margin) - first)
            }
            Border::Repeated(border) => (start as i64 - border as i64, end - start + 2 * border),
        };
        Span { own: (start as i64, end - start), input }
    };
    (0..parts).map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_pixel_once_and_read_their_border() {
        for border in [Border::Picture(0), Border::Picture(10), Border::Repeated(7)] {
            for multiple in [1, 2, 4] {
                for (width, height) in [(4, 4), (40, 8), (300, 204), (1000, 4), (128, 600)] {
                    let mut times = vec![0u8; width * height];
                    for Tile { own, input } in tiles([width, height], 96, border, multiple) {
                        assert!(input.width <= 96 + multiple && input.height <= 96 + multiple);
                        assert_eq!((own.left as usize % multiple, own.width % multiple), (0, 0));
                        let before = own.left - input.left;
                        let after = (input.left - own.left) + input.width as i64 - own.width as i64;
                        match border {
                            Border::Repeated(border) => {
                                assert_eq!((before, after), (border as i64, border as i64));
                            }
                            Border::Picture(border) => {
                                assert!(input.left >= 0 && before >= (border as i64).min(own.left));
                                let rest = width as i64 - own.left - own.width as i64;
                                assert!(after >= (border as i64).min(rest) && after <= rest);
                                assert_eq!((input.left as usize % multiple, input.width % multiple), (0, 0));
                            }
                        }
                        for y in 0..own.height {
                            let start = (own.top as usize + y) * width + own.left as usize;
                            times[start..start + own.width].iter_mut().for_each(|times| *times += 1);
                        }
                    }
                    assert!(times.iter().all(|times| *times == 1), "{border:?} {multiple} {width}×{height}");
                }
            }
        }
    }
}
