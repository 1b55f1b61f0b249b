/// How sure the classifier is of each class; the five add up to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NsfwScores {
    pub drawing: f32,
    pub hentai: f32,
    pub neutral: f32,
    pub porn: f32,
    pub sexy: f32,
}
