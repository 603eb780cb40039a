"""The question for a schema: a JSON object for each table, view and the like."""

RELATIONS = """
SELECT json_build_object(
  'schema', n.nspname,
  'name', c.relname,
  'kind', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table'
    WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END,
  'comment', obj_description(c.oid, 'pg_class'),
  'row_estimate', CASE WHEN c.relkind <> 'v' AND c.reltuples >= 0 THEN c.reltuples::bigint END,
  'columns', (
    SELECT coalesce(json_agg(json_build_object(
      'name', a.attname,
      'type', format_type(a.atttypid, a.atttypmod),
      'nullable', NOT a.attnotnull,
      'default', CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, c.oid) END,
      'comment', col_description(c.oid, a.attnum)
    ) ORDER BY a.attnum), '[]')
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'primary_key', (
    SELECT coalesce(json_agg(a.attname ORDER BY k.place), '[]')
    FROM pg_constraint p, unnest(p.conkey) WITH ORDINALITY k(attnum, place), pg_attribute a
    WHERE p.conrelid = c.oid AND p.contype = 'p' AND a.attrelid = c.oid AND a.attnum = k.attnum),
  'foreign_keys', (
    SELECT coalesce(json_agg(json_build_object(
      'columns', (
        SELECT json_agg(a.attname ORDER BY k.place)
        FROM unnest(f.conkey) WITH ORDINALITY k(attnum, place), pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum = k.attnum),
      'references', json_build_object(
        'schema', there.nspname,
        'table', other.relname,
        'columns', (
          SELECT json_agg(a.attname ORDER BY k.place)
          FROM unnest(f.confkey) WITH ORDINALITY k(attnum, place), pg_attribute a
          WHERE a.attrelid = other.oid AND a.attnum = k.attnum))
    ) ORDER BY f.conname), '[]')
    FROM pg_constraint f
    JOIN pg_class other ON other.oid = f.confrelid
    JOIN pg_namespace there ON there.oid = other.relnamespace
    WHERE f.conrelid = c.oid AND f.contype = 'f'),
  'indexes', (
    SELECT coalesce(json_agg(pg_get_indexdef(i.indexrelid) ORDER BY i.indexrelid), '[]')
    FROM pg_index i WHERE i.indrelid = c.oid)
)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND NOT c.relispartition
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
  AND has_schema_privilege(n.oid, 'USAGE')
ORDER BY n.nspname <> 'public', n.nspname, c.relname
"""
"""`public` comes first: if there is too much, it is the last to be missing. Partitions are left
out, since they are like their table."""
