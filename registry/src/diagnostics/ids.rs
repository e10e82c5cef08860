//! Every diagnostic's stable id, in one place so that `docs/diagnostics.md` can be proven complete.

macro_rules! ids {
    ($($constant:ident = $id:literal),+ $(,)?) => {
        $(
            #[doc = concat!("`", $id, "`: explained in `docs/diagnostics.md`.")]
            pub const $constant: &str = $id;
        )+

        /// All of them, in the order of the page.
        pub const ALL: &[&str] = &[$($id),+];
    };
}

ids! {
    // Files
    PROJECT_NOT_FOUND = "project-not-found",
    FILE_UNREADABLE = "file-unreadable",
    FILE_TOO_LARGE = "file-too-large",
    NOT_UTF8 = "not-utf8",
    EMPTY_FILE = "empty-file",
    LINK_LEAVES_PROJECT = "link-leaves-project",
    // YAML
    YAML_SYNTAX = "yaml-syntax",
    YAML_TAB = "yaml-tab",
    YAML_ALIAS = "yaml-alias",
    YAML_TAG = "yaml-tag",
    YAML_DOCUMENTS = "yaml-documents",
    YAML_TOO_DEEP = "yaml-too-deep",
    DUPLICATE_KEY = "duplicate-key",
    // Shape
    UNKNOWN_KEY = "unknown-key",
    UNKNOWN_WORD = "unknown-word",
    WRONG_TYPE = "wrong-type",
    OUT_OF_RANGE = "out-of-range",
    MISSING_FIELD = "missing-field",
    MISSING_OWNER = "missing-owner",
    MISSING_DESCRIPTION = "missing-description",
    EXCLUSIVE_FIELDS = "exclusive-fields",
    EMPTY_LIST = "empty-list",
    BAD_NAME = "bad-name",
    BAD_DURATION = "bad-duration",
    BAD_TIME = "bad-time",
    // Settings
    BAD_SETTING = "bad-setting",
    UNSET_VARIABLE = "unset-variable",
    UNKNOWN_PROFILE = "unknown-profile",
    // Names and references
    DUPLICATE_NAME = "duplicate-name",
    UNKNOWN_OWNER = "unknown-owner",
    UNKNOWN_ENTITY = "unknown-entity",
    UNKNOWN_POOL = "unknown-pool",
    UNKNOWN_WEBHOOK = "unknown-webhook",
    UNKNOWN_VIEW = "unknown-view",
    UNKNOWN_FEATURE = "unknown-feature",
    RESERVED_NAME = "reserved-name",
    RULE_BROKEN = "rule-broken",
    // Paths
    PATH_LEAVES_PROJECT = "path-leaves-project",
    PATH_NOT_ALLOWED = "path-not-allowed",
    BAD_PATH = "bad-path",
    // Entities, features and checks
    BAD_KEY_TYPE = "bad-key-type",
    KEY_AS_FEATURE = "key-as-feature",
    BAD_DEFAULT = "bad-default",
    UNKNOWN_CHECK_COLUMN = "unknown-check-column",
    BAD_CHECK = "bad-check",
    // Views
    TTL_MISSING = "ttl-missing",
    TTL_WITHOUT_PARTIAL = "ttl-without-partial",
    BAD_FRESHNESS = "bad-freshness",
    VIEW_WITHOUT_DAG = "view-without-dag",
    VIEW_IN_TWO_DAGS = "view-in-two-dags",
    VIEW_CYCLE = "view-cycle",
    // SQL
    SQL_SYNTAX = "sql-syntax",
    SQL_NOT_QUERY = "sql-not-query",
    SQL_STATEMENTS = "sql-statements",
    SQL_STYLE = "sql-style",
    SQL_TOO_LARGE = "sql-too-large",
    SQL_TABLE_FUNCTION = "sql-table-function",
    UNKNOWN_TABLE = "unknown-table",
    CHECK_READS_OTHER = "check-reads-other",
    UNKNOWN_PLACEHOLDER = "unknown-placeholder",
    // DAGs
    BAD_CRON = "bad-cron",
    UNKNOWN_TIMEZONE = "unknown-timezone",
    START_AFTER_END = "start-after-end",
    DAG_CYCLE = "dag-cycle",
    // Tests of definitions
    BAD_TEST = "bad-test",
    // Recipes
    BAD_RECIPE = "bad-recipe",
    // Found by planning the SQL against the sources' schemas
    UNKNOWN_COLUMN = "unknown-column",
    AMBIGUOUS_COLUMN = "ambiguous-column",
    NOT_GROUPED = "not-grouped",
    UNKNOWN_FUNCTION = "unknown-function",
    VOLATILE_FUNCTION = "volatile-function",
    INCOMPATIBLE_TYPES = "incompatible-types",
    SQL_INVALID = "sql-invalid",
    TYPE_MISMATCH = "type-mismatch",
    MISSING_COLUMN = "missing-column",
    UNDECLARED_COLUMN = "undeclared-column",
    MISSING_ENTITY_KEY = "missing-entity-key",
    SOURCE_UNREADABLE = "source-unreadable",
    // Found by comparing with the registry
    PUBLISHED_LOGIC_CHANGE = "published-logic-change",
}
