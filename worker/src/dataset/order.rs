//! In which order the files of a history are read: newest first.
//!
//! The join takes rows in any order, and lets each replace an older one. Of what it has once, nothing older makes it copy
//! anything; a table read in the order in which it grew would be copied whole. Only time depends on it, so a guess will do:
//! files lie below the id of the run that wrote them, and ids sort by creation.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;

/// The same plan, each stream of whose scans reads the files written last first. Spines, which keep their order, are hidden
/// from it by the join.
pub(super) fn newest_first(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let sorted = plan.transform_up(|node| {
        let Some(exec) = node.downcast_ref::<DataSourceExec>() else { return Ok(Transformed::no(node)) };
        let Some(config) = exec.data_source().downcast_ref::<FileScanConfig>() else {
            return Ok(Transformed::no(node));
        };
        let groups = config.file_groups.iter().map(sorted).collect();
        let config = FileScanConfigBuilder::from(config.clone()).with_file_groups(groups).build();
        Ok(Transformed::yes(Arc::new(exec.clone().with_data_source(Arc::new(config))) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(sorted.data)
}

fn sorted(group: &FileGroup) -> FileGroup {
    let mut files = group.files().to_vec();
    // the pieces of one file stay in their order
    files.sort_by(|a, b| b.object_meta.location.as_ref().cmp(a.object_meta.location.as_ref()));
    FileGroup::new(files)
}
