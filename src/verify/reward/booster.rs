//! XGBoost, and all that is particular about it.
//!
//! It computes on one thread, so that training gives the same trees every time and a prediction starts no
//! threads. A loaded model is used by one caller at a time: predicting fills buffers in it.

use std::collections::HashMap;

use parking_lot::Mutex;
use xgboost_rs::{
    DMatrix, XGBError,
    parameters::{BoosterParametersBuilder, learning},
};

use super::{FEATURES, ModelError, PairFeatures, training::Recipe};

pub(super) struct Booster(Mutex<xgboost_rs::Booster>);

fn failed(error: XGBError) -> ModelError {
    ModelError::Booster(error.to_string())
}

/// Rows of features. XGBoost copies them.
fn matrix(pairs: &[PairFeatures]) -> Result<DMatrix, ModelError> {
    const VALUE: usize = size_of::<f32>();
    let values: Vec<f32> = pairs.iter().flat_map(|pair| *pair.values()).collect();
    // Strides say that rows lie one after the other, whatever the function's name says; and unlike
    // `from_dense`, it takes NaN and not 0 for what is missing.
    DMatrix::from_col_major_f32(&values, FEATURES * VALUE, VALUE, pairs.len(), FEATURES, 1, f32::NAN)
        .map_err(failed)
}

impl Booster {
    /// A file that was checked (`trees::check`).
    pub(super) fn load(file: &[u8]) -> Result<Self, ModelError> {
        let mut booster = xgboost_rs::Booster::load_buffer(file).map_err(failed)?;
        // What is not about threads is what the file was checked to say.
        let objective = learning::LearningTaskParametersBuilder::default()
            .objective(learning::Objective::BinaryLogistic)
            .build()
            .map_err(|error| ModelError::Booster(error.to_string()))?;
        let parameters =
            BoosterParametersBuilder::default().learning_params(objective).threads(Some(1)).build();
        let parameters = parameters.map_err(|error| ModelError::Booster(error.to_string()))?;
        booster.set_params(&parameters).map_err(failed)?;
        Ok(Self(Mutex::new(booster)))
    }

    pub(super) fn predict(&self, pairs: &[PairFeatures]) -> Result<Vec<f32>, ModelError> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let predicted = self.0.lock().predict(&matrix(pairs)?).map_err(failed)?;
        match predicted.len() == pairs.len() {
            true => Ok(predicted),
            false => Err(ModelError::Booster("it predicts another number of values than pairs".into())),
        }
    }

    pub(super) fn contributions(&self, pair: &PairFeatures) -> Result<([f32; FEATURES], f32), ModelError> {
        let rows = matrix(std::slice::from_ref(pair))?;
        let (values, _) = self.0.lock().predict_contributions(&rows).map_err(failed)?;
        match values.split_first_chunk::<FEATURES>() {
            Some((features, &[average])) => Ok((*features, average)),
            _ => Err(ModelError::Booster("it explains another number of features".into())),
        }
    }
}

/// Trains a model and gives its file.
pub(super) fn train(
    pairs: &[PairFeatures],
    labels: &[f32],
    weights: &[f32],
    recipe: &Recipe,
) -> Result<Vec<u8>, ModelError> {
    let mut rows = matrix(pairs)?;
    rows.set_labels(labels).map_err(failed)?;
    rows.set_weights(weights).map_err(failed)?;
    // No feature that grows makes a pair more alike.
    let monotone = format!("({})", vec!["-1"; FEATURES].join(","));
    let settings = [
        ("objective", "binary:logistic".to_owned()),
        ("base_score", "0.5".to_owned()),
        ("tree_method", "exact".to_owned()),
        ("nthread", "1".to_owned()),
        ("seed", "0".to_owned()),
        ("monotone_constraints", monotone),
        ("max_depth", recipe.depth.to_string()),
        ("eta", recipe.learning_rate.to_string()),
        ("min_child_weight", recipe.least_weight.to_string()),
        ("lambda", recipe.regularisation.to_string()),
        ("verbosity", "0".to_owned()),
    ];
    let settings: HashMap<String, String> = settings.map(|(name, value)| (name.to_owned(), value)).into();
    let mut booster = xgboost_rs::Booster::new_with_json_config(&[&rows], settings).map_err(failed)?;
    for round in 0..recipe.rounds {
        booster.update(&rows, round as i32).map_err(failed)?;
    }
    Ok(booster.save_to_buffer("json".to_owned()).map_err(failed)?.into_bytes())
}
