//! Merkle trees: one hash that commits to a list, and short proofs of what stands where in it.
//!
//! The tree has the shape of RFC 9162 (the left half of n leaves is the largest power of two below n), so
//! that no leaf is ever there twice. Hashes are BLAKE3 in key-derivation mode with one context for leaves and
//! another for nodes: no leaf can be shown as a node, nor a tree of something else as one of these. A leaf's
//! index is hashed with it, and the number of leaves is known to whoever checks a path.

use blake3::Hasher;

/// A hash of a leaf, of a node, of a whole tree.
pub type Hash = [u8; 32];

const LEAF: &str = "argus/trajectory/leaf/1";
const NODE: &str = "argus/trajectory/node/1";

/// The hash of leaf `index`.
pub fn leaf(index: u32, content: &[u8]) -> Hash {
    let mut hasher = Hasher::new_derive_key(LEAF);
    hasher.update(&index.to_le_bytes());
    hasher.update(content);
    *hasher.finalize().as_bytes()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Hasher::new_derive_key(NODE);
    hasher.update(left);
    hasher.update(right);
    *hasher.finalize().as_bytes()
}

/// Where the right half of `count` leaves begins; there are at least two.
fn split(count: usize) -> usize {
    1 << (count - 1).ilog2()
}

/// The hash of a whole tree; `None` for one without leaves.
pub fn root(leaves: &[Hash]) -> Option<Hash> {
    match leaves {
        [] => None,
        [only] => Some(*only),
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            Some(node(&root(left)?, &root(right)?))
        }
    }
}

/// The hashes beside the way from a leaf to the root, the leaf's neighbour first; `None` where there is no
/// such leaf.
pub fn path(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
    if index >= leaves.len() {
        return None;
    }
    let (mut rest, mut index, mut beside) = (leaves, index, Vec::new());
    while rest.len() > 1 {
        let (left, right) = rest.split_at(split(rest.len()));
        let other;
        (rest, other) = if index < left.len() { (left, right) } else { (right, left) };
        index -= if std::ptr::eq(rest, right) { left.len() } else { 0 };
        beside.push(root(other)?);
    }
    beside.reverse();
    Some(beside)
}

/// How many hashes a path to leaf `index` of `count` has.
pub fn path_length(index: u32, count: u32) -> usize {
    let (mut index, mut count, mut length) = (index as usize, count as usize, 0);
    while count > 1 {
        let left = split(count);
        (index, count) = if index < left { (index, left) } else { (index - left, count - left) };
        length += 1;
    }
    length
}

/// The root that a leaf and its path lead to in a tree of `count` leaves; `None` where the path has another
/// length than one to that leaf.
pub fn root_by(leaf: Hash, index: u32, count: u32, path: &[Hash]) -> Option<Hash> {
    if index >= count || path.len() != path_length(index, count) {
        return None;
    }
    // Going down from the root the path is read from its end; going up the turns come in reverse.
    let (mut index, mut count) = (index as usize, count as usize);
    let mut is_right = Vec::with_capacity(path.len());
    while count > 1 {
        let left = split(count);
        is_right.push(index >= left);
        (index, count) = if index < left { (index, left) } else { (index - left, count - left) };
    }
    let turns = is_right.into_iter().rev().zip(path);
    Some(turns.fold(leaf, |hash, (is_right, beside)| match is_right {
        true => node(beside, &hash),
        false => node(&hash, beside),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u32) -> Vec<Hash> {
        (0..count).map(|index| leaf(index, &[index as u8; 3])).collect()
    }

    #[test]
    fn each_leaf_leads_to_the_root_by_its_own_path_alone() {
        for count in 1..=70 {
            let leaves = leaves(count);
            let whole = root(&leaves).unwrap();
            for (index, leaf) in (0..).zip(&leaves) {
                let path = path(&leaves, index as usize).unwrap();
                assert_eq!(path.len(), path_length(index, count));
                assert_eq!(root_by(*leaf, index, count, &path), Some(whole));
                // Under another index, in a tree of another size, with a hash more or less.
                for other in (0..count).filter(|other| *other != index) {
                    assert_ne!(
                        root_by(*leaf, other, count, &path),
                        Some(whole),
                        "{index} as {other} of {count}"
                    );
                }
                assert_eq!(root_by(*leaf, index, count, &[&path[..], &[whole]].concat()), None);
                if let Some((_, shorter)) = path.split_first() {
                    assert_eq!(root_by(*leaf, index, count, shorter), None);
                }
                assert_eq!(root_by(*leaf, count, count, &path), None);
            }
            assert!(path(&leaves, count as usize).is_none());
        }
        assert!(root(&[]).is_none());
    }

    #[test]
    fn trees_have_the_published_shape() {
        let all = leaves(7);
        let [a, b, c, d, e, f, g] = all[..] else { unreachable!() };
        let left = node(&node(&a, &b), &node(&c, &d));
        assert_eq!(root(&all), Some(node(&left, &node(&node(&e, &f), &g))));
        assert_eq!(path(&all, 6), Some(vec![node(&e, &f), left]));
    }

    #[test]
    fn leaves_and_nodes_are_of_other_kinds() {
        let pair = leaves(2);
        let content = [pair[0], pair[1]].concat();
        assert_ne!(root(&pair), Some(leaf(0, &content)));
        assert_ne!(leaf(0, b"x"), leaf(1, b"x"));
        // The index cannot be traded for content.
        assert_ne!(leaf(0, &[1, 0, 0, 0]), leaf(1, &[0, 0, 0, 0]));
    }
}
