//! Model files as XGBoost writes them (JSON, version 1), checked before XGBoost reads them.
//!
//! XGBoost follows the indices in a file wherever they point. What passes here has nothing but trees: each node
//! is reached once, on a short path, and asks for a feature that is there.

use serde::Deserialize;

use super::ModelError;

const MAX_TREES: usize = 2_000;
/// Nodes of one tree.
const MAX_NODES: usize = 4_096;
/// Decisions from a root to a leaf.
const MAX_DEPTH: u32 = 16;
/// What XGBoost writes for "no node" among children, and among parents.
const NO_CHILD: i64 = -1;
const NO_PARENT: i64 = i32::MAX as i64;

#[derive(Deserialize)]
struct File {
    learner: Learner,
    version: [u32; 3],
}

#[derive(Deserialize)]
struct Learner {
    gradient_booster: GradientBooster,
    learner_model_param: LearnerParameters,
    objective: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct LearnerParameters {
    base_score: String,
    num_class: String,
    num_feature: String,
}

#[derive(Deserialize)]
struct GradientBooster {
    name: String,
    model: Forest,
}

#[derive(Deserialize)]
struct Forest {
    gbtree_model_param: ForestParameters,
    tree_info: Vec<u32>,
    trees: Vec<Tree>,
}

#[derive(Deserialize)]
struct ForestParameters {
    num_trees: String,
    size_leaf_vector: String,
}

#[derive(Deserialize)]
struct Tree {
    base_weights: Vec<f32>,
    categories: Vec<serde_json::Value>,
    default_left: Vec<serde_json::Value>,
    left_children: Vec<i64>,
    right_children: Vec<i64>,
    parents: Vec<i64>,
    loss_changes: Vec<f32>,
    split_conditions: Vec<f32>,
    split_indices: Vec<u32>,
    split_type: Vec<u32>,
    sum_hessian: Vec<f32>,
    tree_param: TreeParameters,
}

#[derive(Deserialize)]
struct TreeParameters {
    num_deleted: String,
    num_feature: String,
    num_nodes: String,
    size_leaf_vector: String,
}

fn malformed<T>(detail: impl Into<String>) -> Result<T, ModelError> {
    Err(ModelError::Malformed(detail.into()))
}

/// XGBoost writes its parameters as text.
fn is(text: &str, number: usize) -> bool {
    text.parse() == Ok(number)
}

/// Checks a file of trees over `features` features.
pub(super) fn check(file: &[u8], features: usize) -> Result<(), ModelError> {
    // XGBoost takes other beginnings for other formats.
    if !file.starts_with(b"{\"") {
        return malformed("it is no JSON file of XGBoost's");
    }
    let File { learner, version } =
        serde_json::from_slice(file).map_err(|error| ModelError::Malformed(error.to_string()))?;
    if version[0] != 1 {
        return malformed(format!("it is of XGBoost {}, read is 1", version[0]));
    }
    let Learner { gradient_booster, learner_model_param: parameters, objective } = learner;
    if objective.name != "binary:logistic" || gradient_booster.name != "gbtree" {
        return malformed(format!("it is {} by {}", objective.name, gradient_booster.name));
    }
    if parameters.base_score.parse() != Ok(0.5f32) || !is(&parameters.num_class, 0) {
        return malformed("it gives other than probabilities of one class");
    }
    if !is(&parameters.num_feature, features) {
        return Err(ModelError::Features);
    }
    let Forest { gbtree_model_param, tree_info, trees } = gradient_booster.model;
    let counted = is(&gbtree_model_param.num_trees, trees.len())
        && is(&gbtree_model_param.size_leaf_vector, 0)
        && tree_info.len() == trees.len()
        && tree_info.iter().all(|group| *group == 0);
    if !counted || trees.is_empty() || trees.len() > MAX_TREES {
        return malformed(format!("it has {} trees, which is not as it says, or too many", trees.len()));
    }
    trees.iter().try_for_each(|tree| tree.check(features))
}

impl Tree {
    fn check(&self, features: usize) -> Result<(), ModelError> {
        let nodes = self.left_children.len();
        let lengths = [
            self.base_weights.len(),
            self.default_left.len(),
            self.right_children.len(),
            self.parents.len(),
            self.loss_changes.len(),
            self.split_conditions.len(),
            self.split_indices.len(),
            self.split_type.len(),
            self.sum_hessian.len(),
        ];
        let TreeParameters { num_deleted, num_feature, num_nodes, size_leaf_vector } = &self.tree_param;
        let counted = lengths.iter().all(|length| *length == nodes)
            && is(num_nodes, nodes)
            && is(num_deleted, 0)
            && is(num_feature, features)
            && is(size_leaf_vector, 0);
        if !counted || nodes == 0 || nodes > MAX_NODES {
            return malformed("a tree has another number of nodes than it says, or too many");
        }
        if !self.categories.is_empty() || self.split_type.iter().any(|kind| *kind != 0) {
            return malformed("a tree asks for categories");
        }
        let numbers = [&self.base_weights, &self.loss_changes, &self.split_conditions, &self.sum_hessian];
        if numbers.into_iter().flatten().any(|number| !number.is_finite()) {
            return malformed("a tree has numbers that are not finite");
        }
        self.check_nodes(features)
    }

    /// Children come after their parents and have one each, which makes a tree of it.
    fn check_nodes(&self, features: usize) -> Result<(), ModelError> {
        let nodes = self.left_children.len();
        let mut depth: Vec<Option<u32>> = vec![None; nodes];
        depth[0] = Some(0);
        if self.parents[0] != NO_PARENT {
            return malformed("a tree's root has a parent");
        }
        for node in 0..nodes {
            let Some(own) = depth[node] else { return malformed("a node of a tree is not reached") };
            if self.split_indices[node] as usize >= features {
                return malformed("a tree asks for a feature that is not there");
            }
            let children = [self.left_children[node], self.right_children[node]];
            if children == [NO_CHILD; 2] {
                continue;
            }
            for child in children {
                let place = usize::try_from(child).ok().filter(|place| (node + 1..nodes).contains(place));
                let Some(place) = place.filter(|place| depth[*place].is_none() && own < MAX_DEPTH) else {
                    return malformed("a tree's branches do not make a tree, or too high a one");
                };
                if self.parents[place] != node as i64 {
                    return malformed("a node of a tree has another parent than it says");
                }
                depth[place] = Some(own + 1);
            }
        }
        Ok(())
    }
}
