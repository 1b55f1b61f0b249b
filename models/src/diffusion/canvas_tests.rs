use super::*;

fn request(start: Start, width: u32, height: u32) -> Generate {
    Generate {
        prompt: String::new(),
        negative_prompt: String::new(),
        width,
        height,
        steps: 1,
        guidance: 1.0,
        seed: 0,
        start,
        controls: Vec::new(),
    }
}

fn chequered(width: u32, height: u32) -> RgbPicture {
    RgbPicture::from_fn(width, height, |x, y| [x as u8, y as u8, if (x + y) % 2 == 0 { 255 } else { 0 }])
}

#[test]
fn a_picture_grows_by_its_edges() {
    let picture = chequered(6, 5);
    let pads = Pads { left: 3, right: 1, top: 2, bottom: 4 };
    let start = Start::Uncrop { picture: picture.clone(), pads };
    let canvas = Canvas::of(&request(start, 10, 11), 2).unwrap().unwrap();
    assert_eq!(canvas.picture.crop(3, 2, 6, 5), picture);
    assert_eq!(canvas.picture.crop(0, 0, 1, 1), picture.crop(0, 0, 1, 1));
    assert_eq!(canvas.picture.crop(9, 10, 1, 1), picture.crop(5, 4, 1, 1));
    assert_eq!(canvas.picture.crop(1, 4, 1, 1), picture.crop(0, 2, 1, 1));
    let masks = canvas.masks.as_ref().unwrap();
    let at = |mask: &[bool], x: usize, y: usize| mask[y * 10 + x];
    assert!(!at(&masks.anew, 3, 2) && at(&masks.anew, 2, 2) && at(&masks.anew, 9, 6));
    // The latent pixel of columns 2 and 3 is half pad.
    assert!(at(&masks.painted, 3, 2) && !at(&masks.painted, 4, 2));
    assert!(masks.anew.iter().zip(&masks.painted).all(|(anew, painted)| !anew || *painted));
}

#[test]
fn the_new_fades_in_inside_the_mask() {
    let (width, height) = (16, 12);
    let picture = RgbPicture::from_fn(width, height, |_, _| [200, 100, 0]);
    let mask = Mask::from_fn(width, height, |x, _| x >= 5);
    let start = Start::Inpaint { picture: picture.clone(), mask, strength: 1.0 };
    let canvas = Canvas::of(&request(start, width, height), 2).unwrap().unwrap();
    let made = canvas.finish(RgbPicture::from_fn(width, height, |_, _| [0, 100, 200]));
    let row: Vec<u8> = made.crop(0, 6, width, 1).pixels().chunks_exact(3).map(|rgb| rgb[0]).collect();
    assert_eq!(row[..10], [200, 200, 200, 200, 200, 150, 100, 50, 0, 0]);
    assert!(made.pixels().chunks_exact(3).all(|rgb| rgb[1] == 100));
}

#[test]
fn a_mask_is_resampled_with_its_picture() {
    let mask = Mask::from_fn(64, 48, |x, y| x < 32 && y >= 24);
    let start = Start::Inpaint { picture: chequered(64, 48), mask, strength: 0.5 };
    let canvas = Canvas::of(&request(start, 32, 32), 4).unwrap().unwrap();
    assert_eq!((canvas.picture.width(), canvas.picture.height()), (32, 32));
    let masks = canvas.masks.unwrap();
    for (place, anew) in masks.anew.iter().enumerate() {
        assert_eq!(*anew, place % 32 < 16 && place / 32 >= 16, "pixel {place}");
    }
    let latent = masks.latent(32, 4);
    assert_eq!(latent.len(), 64);
    for (place, anew) in latent.iter().enumerate() {
        assert_eq!(*anew, f32::from(u8::from(place % 8 < 4 && place / 8 >= 4)));
    }
}

#[test]
fn one_new_pixel_in_a_corner_and_one_known() {
    for (mask, expected) in [
        (Mask::from_fn(8, 8, |x, y| (x, y) == (7, 7)), 1),
        (Mask::from_fn(8, 8, |x, y| (x, y) != (0, 0)), FADE),
        (Mask::from_fn(8, 8, |_, _| true), FADE),
    ] {
        let opacities = opacities(mask.anew(), 8);
        assert_eq!(opacities[63], expected);
        assert_eq!(opacities[0], if mask.anew()[0] { FADE } else { 0 });
    }
}
