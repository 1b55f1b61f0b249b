//! The filters against OpenCV's bytes.

use std::path::Path;

use safetensors::SafeTensors;

use super::*;

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)).unwrap()
}

/// As `made` of models/training/fixtures/preprocess.py.
fn made(width: u32, height: u32) -> RgbPicture {
    RgbPicture::from_fn(width, height, |x, y| {
        let rings = (i64::from(x) - 100).pow(2) + (i64::from(y) - 90).pow(2);
        [(rings / 97 % 256) as u8, ((x * 3 + y * 5) % 256) as u8, ((x / 16 * 40 + y / 24 * 70) % 256) as u8]
    })
}

fn picture(name: &str) -> RgbPicture {
    if let Some(size) = name.strip_prefix("made-") {
        let (width, height) = size.split_once('x').unwrap();
        return made(width.parse().unwrap(), height.parse().unwrap());
    }
    RgbPicture::decode(&bytes(&format!("pictures/{name}")), &Default::default()).unwrap()
}

/// 255 and 0 as bits.
fn packed(values: &[u8]) -> Vec<u8> {
    assert!(values.iter().all(|value| [0, 255].contains(value)));
    let byte =
        |bits: &[u8]| bits.iter().enumerate().fold(0, |byte, (place, bit)| byte | (bit & (0x80 >> place)));
    values.chunks(8).map(byte).collect()
}

#[test]
fn every_filter_gives_opencvs_bytes() {
    let fixture = bytes("preprocess.fixture");
    let fixture = SafeTensors::deserialize(&fixture).unwrap();
    let names = fixture.names();
    let pictures: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(":shape")).collect();
    assert!(pictures.len() >= 13);
    let mut compared = 0;
    for name in pictures {
        let picture = picture(name);
        let grey = GreyPicture::of(&picture);
        let mut check = |what: &str, found: &[u8]| {
            if let Ok(expected) = fixture.tensor(&format!("{name}:{what}")) {
                assert!(found == expected.data(), "{name}: {what}");
                compared += 1;
            }
        };
        check("grey", grey.values());
        check("blurred", grey.blurred().values());
        for (low, high) in [(50, 150), (100, 200), (20, 40)] {
            let edges = grey.canny(CannyThresholds { low, high });
            check(&format!("canny-{low}-{high}"), &packed(edges.values()));
            assert_eq!(edges, grey.canny(CannyThresholds { low: high, high: low }));
        }
        let edges = grey.canny(CannyThresholds::OUTLINE);
        check("dilated", &packed(edges.dilated().values()));
        check("eroded", &packed(edges.eroded().values()));
        let outline = outline(&picture);
        check("outline", &packed(GreyPicture::of(&outline).values()));
        let whites =
            |picture: &RgbPicture| picture.pixels().iter().map(|v| usize::from(*v)).sum::<usize>() / 255;
        assert_eq!(whites(&outline) + whites(&scribble(&picture)), picture.pixels().len());
    }
    assert!(compared > 90, "{compared} tensors");
}

#[test]
fn lines_are_white_on_black_for_networks() {
    let square = RgbPicture::from_fn(64, 64, |x, y| {
        if (16..48).contains(&x) && (16..48).contains(&y) { [250, 240, 230] } else { [10, 20, 30] }
    });
    for control in [canny(&square, CannyThresholds::CONTROL), scribble(&square)] {
        assert_eq!(control.pixels()[..3], [0; 3]);
        let lit = control.pixels().iter().filter(|value| **value == 255).count() / 3;
        assert!((100..700).contains(&lit), "{lit} pixels of lines");
    }
    assert_eq!(outline(&square).pixels()[..3], [255; 3]);
}

#[test]
fn circles_are_inside_their_bounds_and_named_by_their_seed() {
    let mut centres = std::collections::HashSet::new();
    for seed in 0..500 {
        let circle = Circle::draw(512, 384, seed);
        assert_eq!(circle, Circle::draw(512, 384, seed));
        assert!(
            circle.centre[0] < 512 && circle.centre[1] < 384 && RADII.contains(&circle.radius),
            "{circle:?}"
        );
        centres.insert(circle.centre);
    }
    assert!(centres.len() > 450);
    assert!(Circle::draw(64, 64, 3).radius <= 32);
    assert_eq!(Circle::draw(1, 1, 7), Circle { centre: [0, 0], radius: 1 });

    let mask = Circle { centre: [30, 30], radius: 20 }.mask(64, 60);
    let anew = mask.anew().iter().filter(|anew| **anew).count();
    assert!((1200..1300).contains(&anew), "{anew} pixels in a circle of radius 20");
    let at = |x: usize, y: usize| mask.anew()[y * 64 + x];
    assert!(at(30, 10) && !at(30, 9) && at(50, 30) && !at(51, 30) && !at(0, 0));
}
