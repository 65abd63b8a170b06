// pgjdbc: everything with its defaults, so that the fifth use of a PreparedStatement names it on the server.

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.UUID;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

public class UsePgjdbc {
    static final int TURNS = 12;
    static final String[] ZONES = {"Asia/Kathmandu", "America/Caracas"};
    static final Set<String> ALONE = Set.of("pool", "reconnect");
    static final String[] EXPRESSIONS = {
        "null", "true", "32767::int2", "-2147483648::int4", "9223372036854775807::int8", "1.5::float8", "'NaN'::float8",
        "12345678901234567890.000100::numeric", "'h\u00e9llo \u2603'::text", "'padded'::char(8)", "'2024-02-29'::date",
        "'12:34:56.789'::time", "'2024-02-29 12:34:56.789+02'::timestamptz", "'3 days 04:05:06'::interval",
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", "'{\"a\": [1, null]}'::jsonb", "array[1, 2, null]::int4[]",
        "array['a', 'b,c', null]::text[]", "'192.168.1.5/24'::inet", "'[1,5)'::int4range", "row(1, 'two')", "'happy'::mood",
    };
    static final Map<String, String> FAILING = new LinkedHashMap<>();

    static {
        FAILING.put("syntax", "selekt 1");
        FAILING.put("table", "select * from no_such_table");
        FAILING.put("division", "select 1 / 0");
        FAILING.put("cast", "select 'x'::int4");
        FAILING.put("unique", "insert into items values (1, 'again')");
        FAILING.put("permission", "select * from pg_authid");
        FAILING.put("function", "select fail_with('P1234')");
        FAILING.put("row in the middle", "select 1 / (50 - id) from items order by id");
    }

    interface Action {
        Object run() throws Exception;
    }

    interface Scenario {
        void play(Notes notes) throws Exception;
    }

    static class NotApplicable extends RuntimeException {
        NotApplicable(String why) {
            super(why);
        }
    }

    static class Notes {
        final int worker;
        final List<String[]> steps = new ArrayList<>();
        int backends = 0;

        Notes(int worker) {
            this.worker = worker;
        }

        void note(String step, Object value) {
            steps.add(new String[] {step, String.valueOf(value)});
        }

        // Notes a value, or the SQLSTATE of the error in its place.
        void outcome(String step, Action action) throws Exception {
            try {
                note(step, action.run());
            } catch (SQLException error) {
                note(step, "failed " + error.getSQLState());
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, Scenario> scenarios = new UsePgjdbc().scenarios();
        for (String name : System.getenv("DRIVERS_SCENARIOS").split(",")) {
            int workers = ALONE.contains(name) ? 1 : Integer.parseInt(System.getenv("DRIVERS_WORKERS"));
            say("{\"begin\": " + quoted(name) + ", \"at\": " + System.currentTimeMillis() / 1000.0 + "}");
            List<Thread> threads = new ArrayList<>();
            for (int number = 0; number < workers; number++) {
                int worker = number;
                threads.add(new Thread(() -> work(name, scenarios.get(name), worker)));
            }
            for (Thread thread : threads) thread.start();
            for (Thread thread : threads) thread.join();
            say("{\"end\": " + quoted(name) + "}");
        }
        System.exit(0);
    }

    static void work(String name, Scenario scenario, int worker) {
        Notes notes = new Notes(worker);
        String na = "null";
        try {
            scenario.play(notes);
        } catch (NotApplicable why) {
            na = quoted(why.getMessage());
        } catch (Exception error) {
            notes.note("ended by", error);
        }
        List<String> steps = new ArrayList<>();
        for (String[] step : notes.steps) steps.add("[" + quoted(step[0]) + ", " + quoted(step[1]) + "]");
        String backends = notes.backends == 0 ? "null" : String.valueOf(notes.backends);
        say("{\"scenario\": " + quoted(name) + ", \"worker\": " + worker + ", \"na\": " + na + ", \"backends\": " + backends
            + ", \"steps\": [" + String.join(", ", steps) + "]}");
    }

    static synchronized void say(String line) {
        byte[] bytes = (line + "\n").getBytes(StandardCharsets.UTF_8);
        System.out.write(bytes, 0, bytes.length);
        System.out.flush();
    }

    static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            if (letter == '"' || letter == '\\') out.append('\\').append(letter);
            else if (letter < ' ') out.append(String.format("\\u%04x", (int) letter));
            else out.append(letter);
        }
        return out.append('"').toString();
    }

    // Connections.

    final URI place = URI.create(System.getenv("DRIVERS_URL"));
    final URI secure = URI.create(System.getenv("DRIVERS_TLS_URL"));

    static String decoded(String text) {
        return java.net.URLDecoder.decode(text.replace("+", "%2B"), StandardCharsets.UTF_8);
    }

    Connection open(URI url, Map<String, String> options) throws SQLException {
        String[] user = url.getRawUserInfo().split(":", 2);
        Properties properties = new Properties();
        properties.put("user", decoded(user[0]));
        properties.put("password", decoded(user[1]));
        properties.put("ApplicationName", "drivers");
        properties.put("sslmode", "disable");
        properties.putAll(options);
        String path = options.getOrDefault("database", url.getPath());
        properties.remove("database");
        return DriverManager.getConnection("jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + path, properties);
    }

    Connection open() throws SQLException {
        return open(place, Map.of());
    }

    static List<List<String>> query(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            return run(statement, values);
        }
    }

    static List<List<String>> run(PreparedStatement statement, Object... values) throws SQLException {
        for (int number = 0; number < values.length; number++) statement.setObject(number + 1, values[number]);
        return statement.execute() ? rows(statement.getResultSet()) : List.of();
    }

    static List<List<String>> rows(ResultSet found) throws SQLException {
        List<List<String>> rows = new ArrayList<>();
        int columns = found.getMetaData().getColumnCount();
        while (found.next()) {
            List<String> row = new ArrayList<>();
            for (int column = 1; column <= columns; column++) row.add(found.getString(column));
            rows.add(row);
        }
        return rows;
    }

    static String value(Connection connection, String sql, Object... values) throws SQLException {
        return query(connection, sql, values).get(0).get(0);
    }

    static Object inTransaction(Connection connection, Action action) throws Exception {
        connection.setAutoCommit(false);
        try {
            Object result = action.run();
            connection.commit();
            return result;
        } catch (Exception error) {
            if (!connection.isClosed()) connection.rollback();
            throw error;
        } finally {
            if (!connection.isClosed()) connection.setAutoCommit(true);
        }
    }

    // Scenarios.

    Map<String, Scenario> scenarios() {
        Map<String, Scenario> all = new LinkedHashMap<>();
        all.put("connect", this::connect);
        all.put("types", this::types);
        all.put("parameters", this::parameters);
        all.put("named", this::named);
        all.put("unnamed", this::unnamed);
        all.put("batch", this::batch);
        all.put("pipeline", notes -> {
            throw new NotApplicable("the driver pipelines batches only");
        });
        all.put("transactions", this::transactions);
        all.put("errors", this::errors);
        all.put("cursors", this::cursors);
        all.put("copy", this::copy);
        all.put("cancel", this::cancel);
        all.put("notify", this::notifications);
        all.put("tls", this::tls);
        all.put("settings", this::settings);
        all.put("pool", this::pool);
        all.put("reconnect", this::reconnect);
        return all;
    }

    void connect(Notes notes) throws Exception {
        Map<String, String> options =
            Map.of("ApplicationName", "drivers " + notes.worker, "options", "-c TimeZone=Asia/Tokyo -c work_mem=7MB");
        try (Connection connection = open(place, options)) {
            notes.note("first answer", query(connection, "select 1"));
            notes.note("application_name", value(connection, "show application_name"));
            notes.note("settings", value(connection, "show timezone") + " " + value(connection, "show work_mem"));
            notes.note("version", connection.getMetaData().getDatabaseProductVersion());
            notes.note("valid", connection.isValid(5));
            notes.note("tables", rows(connection.getMetaData().getTables(null, "public", "items", null)).size());
            notes.note("database name", value(connection, "select current_database()").equals(connection.getCatalog()));
            int pid = connection.unwrap(PGConnection.class).getBackendPID();
            notes.note("process number", value(connection, "select pg_backend_pid()").equals(String.valueOf(pid)));
        }
        notes.outcome("wrong password", () -> open(place, Map.of("password", "wrong")));
        notes.outcome("unknown database", () -> open(place, Map.of("database", "/no_such_database")));
    }

    void types(Notes notes) throws Exception {
        try (Connection connection = open()) {
            for (String expression : EXPRESSIONS) {
                notes.outcome(expression, () -> {
                    try (Statement statement = connection.createStatement();
                        ResultSet found = statement.executeQuery("select " + expression)) {
                        found.next();
                        Object value = found.getObject(1);
                        return value == null ? "null" : value.getClass().getSimpleName() + " " + found.getString(1);
                    }
                });
            }
        }
    }

    void parameters(Notes notes) throws Exception {
        try (Connection connection = open()) {
            Object[][] values = {
                {"int4", 42}, {"int8", 1L << 40}, {"float8", 0.1}, {"text", "quote ' backslash \\ snow \u2603"},
                {"text", ""}, {"bool", false}, {"numeric", new java.math.BigDecimal("1234567.8900")},
                {"bytea", new byte[] {0, -1, 16}}, {"date", java.time.LocalDate.of(1999, 12, 31)},
                {"uuid", UUID.fromString("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")},
            };
            for (Object[] given : values) {
                notes.outcome(given[0] + " " + notes.steps.size(), () -> value(connection, "select ?::" + given[0], given[1]));
            }
            Array array = connection.createArrayOf("text", new Object[] {"a", "b\"c", null});
            notes.note("array", value(connection, "select ?::text[]", array));
            String text = "x\u2603".repeat(100_000);
            notes.note("long text", value(connection, "select ?::text", text).equals(text));
            notes.outcome("bad value", () -> value(connection, "select ?::text::int4", "seven"));
            notes.note("after it", value(connection, "select ?::int4", 7));
        }
    }

    void named(Notes notes) throws Exception {
        String table = "named_" + notes.worker;
        try (Connection session = open(); Connection other = open();
            PreparedStatement plus = session.prepareStatement("select ?::int4 + 1");
            PreparedStatement item = session.prepareStatement("select name from items where id = ?");
            PreparedStatement divide = session.prepareStatement("select 10 / ?::int4");
            PreparedStatement times = other.prepareStatement("select ?::int4 * 2")) {
            for (int n = 1; n <= TURNS; n++) {
                notes.note("turn " + n, List.of(run(plus, n), run(item, n), run(times, n), run(divide, n)));
            }
            notes.outcome("division by zero", () -> run(divide, 0));
            notes.note("after it", run(divide, 2));
            notes.outcome("in a transaction", () -> inTransaction(session, () -> List.of(run(plus, 1), run(item, 2))));
            notes.outcome("error in a transaction", () -> inTransaction(session, () -> List.of(run(plus, 1), run(divide, 0))));
            notes.note("after the transaction", List.of(run(plus, 2), run(item, 3), run(divide, 10)));
            query(session, "create table " + table + " (a int4)");
            query(session, "insert into " + table + " values (1)");
            try (PreparedStatement everything = session.prepareStatement("select * from " + table + " where a = ?")) {
                for (int n = 0; n < TURNS; n++) run(everything, 1);
                query(other, "alter table " + table + " add column b text default 'new'");
                for (int n = 0; n < 3; n++) notes.outcome("after the change, turn " + n, () -> run(everything, 1));
                notes.outcome("the change in a transaction", () -> inTransaction(session, () -> {
                    query(session, "alter table " + table + " add column c int default 3");
                    return run(everything, 1);
                }));
            }
            query(session, "drop table " + table);
            // More than the driver's cache of 256 holds, so that it closes some.
            for (int n = 0; n < 300; n++) {
                try (PreparedStatement one = session.prepareStatement("select " + n + " + ?::int4")) {
                    for (int turn = 0; turn < 6; turn++) run(one, n);
                }
            }
            notes.note("after many statements", run(plus, 41));
            try (Statement statement = session.createStatement()) {
                notes.outcome("deallocate all", () -> statement.execute("deallocate all"));
            }
            for (int n = 0; n < 3; n++) notes.outcome("after deallocate all, turn " + n, () -> run(plus, 1));
        }
    }

    void unnamed(Notes notes) throws Exception {
        try (Connection session = open(place, Map.of("prepareThreshold", "0"))) {
            for (int n = 0; n < TURNS; n++) notes.note("turn " + n, value(session, "select ?::int4 + 1", n));
            notes.outcome("division by zero", () -> value(session, "select 1 / ?::int4", 0));
            notes.outcome("error in a transaction", () -> inTransaction(session, () -> value(session, "select 1 / ?::int4", 0)));
            notes.note("after the transaction", value(session, "select ?::text", "b"));
            notes.note("many rows", query(session, "select generate_series(1, ?::int4)", 20_000).size());
        }
        for (String mode : List.of("simple", "extendedForPrepared", "extendedCacheEverything")) {
            try (Connection session = open(place, Map.of("preferQueryMode", mode))) {
                for (int n = 0; n < TURNS; n++) notes.note(mode + " " + n, value(session, "select ?::int4 + 1", n));
                notes.outcome(mode + ", an error", () -> value(session, "select 1 / ?::int4", 0));
                notes.note(mode + ", after it", value(session, "select ?::text", "c"));
            }
        }
    }

    void batch(Notes notes) throws Exception {
        String table = "work_" + notes.worker;
        String insert = "insert into " + table + " values (?, ?)";
        for (String rewrite : List.of("false", "true")) {
            try (Connection session = open(place, Map.of("reWriteBatchedInserts", rewrite))) {
                query(session, "delete from " + table);
                notes.outcome("many " + rewrite, () -> many(session, insert, 0, 250));
                notes.note("rows " + rewrite, query(session, "select count(*), sum(id) from " + table));
                notes.outcome("a row twice " + rewrite, () -> many(session, insert, 249, 260));
                notes.note("rows after it " + rewrite, query(session, "select count(*), sum(id) from " + table));
                notes.outcome("a row twice in a transaction " + rewrite,
                    () -> inTransaction(session, () -> many(session, insert, 249, 260)));
                notes.note("rows at the end " + rewrite, query(session, "select count(*), sum(id) from " + table));
                query(session, "delete from " + table);
            }
        }
    }

    static Object many(Connection session, String insert, int from, int to) throws SQLException {
        try (PreparedStatement statement = session.prepareStatement(insert)) {
            for (int n = from; n < to; n++) {
                statement.setInt(1, n);
                statement.setString(2, "row " + n);
                statement.addBatch();
            }
            return Arrays.stream(statement.executeBatch()).distinct().boxed().toList();
        }
    }

    void transactions(Notes notes) throws Exception {
        String table = "work_" + notes.worker;
        String insert = "insert into " + table + " values (?, 'x')";
        String counted = "select count(*) from " + table;
        try (Connection session = open(place, Map.of("autosave", "always"))) {
            query(session, "delete from " + table);
            notes.outcome("with a savepoint before each", () -> inTransaction(session, () -> {
                query(session, insert, 1);
                notes.outcome("its error", () -> query(session, insert, 1));
                return value(session, counted);
            }));
        }
        try (Connection session = open(); Connection other = open()) {
            query(session, "delete from " + table);
            notes.outcome("seen by itself, by another", () -> inTransaction(session, () -> {
                query(session, insert, 1);
                return value(session, counted) + " " + value(other, counted);
            }));
            notes.note("committed", value(other, counted));
            notes.outcome("rolled back", () -> inTransaction(session, () -> {
                query(session, insert, 2);
                return query(session, "select 1 / 0");
            }));
            notes.note("after rolling back", value(other, counted));
            notes.outcome("savepoints", () -> inTransaction(session, () -> {
                query(session, insert, 3);
                Savepoint point = session.setSavepoint();
                notes.outcome("inside", () -> query(session, "selekt"));
                session.rollback(point);
                return query(session, insert, 5);
            }));
            notes.note("with savepoints", query(other, "select id from " + table + " order by id"));
            session.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            notes.outcome("isolation", () -> inTransaction(session, () -> value(session, "show transaction_isolation")));
            session.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
            session.setReadOnly(true);
            notes.outcome("read only", () -> inTransaction(session, () -> query(session, insert, 6)));
            session.setReadOnly(false);
            notes.outcome("deferred constraint",
                () -> inTransaction(session, () -> query(session, "insert into children values (1, -1)")));
            query(session, "delete from " + table);
        }
        try (Connection session = open()) {
            Set<String> seen = new HashSet<>();
            for (int n = 0; n < 40; n++) {
                seen.add(value(session, "select pg_backend_pid()"));
                Thread.sleep(5);
            }
            notes.backends = seen.size();
        }
    }

    void errors(Notes notes) throws Exception {
        try (Connection session = open(); Statement statement = session.createStatement()) {
            for (Map.Entry<String, String> failing : FAILING.entrySet()) {
                notes.outcome(failing.getKey(), () -> query(session, failing.getValue()));
                notes.note("after " + failing.getKey(), value(session, "select ?::int4", 1));
                notes.outcome(failing.getKey() + " in a transaction", () -> inTransaction(session, () -> {
                    query(session, "select 1");
                    notes.outcome(failing.getKey() + " itself", () -> query(session, failing.getValue()));
                    return query(session, "select 2");
                }));
            }
            statement.setQueryTimeout(1);
            notes.outcome("query timeout", () -> statement.execute("select pg_sleep(20)"));
            statement.setQueryTimeout(0);
            statement.execute("do $do$ begin raise notice 'one'; raise warning 'two'; end $do$");
            List<String> warnings = new ArrayList<>();
            for (SQLWarning w = statement.getWarnings(); w != null; w = w.getNextWarning()) warnings.add(w.getMessage());
            notes.note("notices", warnings);
            notes.outcome("several statements", () -> {
                int results = 0;
                boolean more = statement.execute("select 1; select 2; select 3");
                while (more) {
                    results++;
                    more = statement.getMoreResults();
                }
                return results;
            });
            notes.outcome("several, one fails", () -> statement.execute("select 1; select 1 / 0; select 3"));
            notes.note("after all", value(session, "select ?::int4", 1));
        }
    }

    void cursors(Notes notes) throws Exception {
        try (Connection session = open(); Connection other = open()) {
            notes.outcome("all", () -> inTransaction(session, () -> fetched(session, "select id from items order by id", 7, 999)));
            notes.outcome("some", () -> inTransaction(session, () -> {
                int some = fetched(session, "select id from items order by id", 10, 15);
                return some + " " + query(other, "select count(*) from items");
            }));
            notes.outcome("error in the middle", () -> inTransaction(session,
                () -> fetched(session, "select 1 / (50 - id) from items order by id", 10, 999)));
            notes.note("after the error", value(session, "select ?::int4", 1));
            for (int n = 0; n < 8; n++) {
                notes.outcome("many " + n, () -> inTransaction(session,
                    () -> fetched(session, "select generate_series(1, 10000)", 3000, 99_999)));
            }
            notes.outcome("with hold", () -> {
                try (Statement statement = session.createStatement(ResultSet.TYPE_FORWARD_ONLY, ResultSet.CONCUR_READ_ONLY,
                    ResultSet.HOLD_CURSORS_OVER_COMMIT)) {
                    session.setAutoCommit(false);
                    statement.setFetchSize(10);
                    ResultSet found = statement.executeQuery("select id from items");
                    session.commit();
                    session.setAutoCommit(true);
                    return rows(found).size();
                }
            });
        }
    }

    static int fetched(Connection session, String sql, int size, int most) throws SQLException {
        try (PreparedStatement statement = session.prepareStatement(sql)) {
            statement.setFetchSize(size);
            ResultSet found = statement.executeQuery();
            int count = 0;
            while (count < most && found.next()) count++;
            return count;
        }
    }

    void copy(Notes notes) throws Exception {
        String table = "work_" + notes.worker;
        StringBuilder lines = new StringBuilder();
        for (int n = 0; n < 20_000; n++) lines.append(n).append("\trow ").append(n).append("x".repeat(50)).append('\n');
        try (Connection session = open()) {
            query(session, "delete from " + table);
            var manager = session.unwrap(PGConnection.class).getCopyAPI();
            Action all = () -> manager.copyIn("copy " + table + " from stdin", stream(lines.toString()));
            notes.outcome("in", all);
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            notes.outcome("out", () -> manager.copyOut("copy " + table + " to stdout", out));
            notes.note("bytes", out.size());
            notes.outcome("twice", all);
            notes.note("after it", value(session, "select count(*) from " + table));
            notes.outcome("bad row", () -> manager.copyIn("copy " + table + " from stdin", stream("seven\tbad\n" + lines)));
            notes.outcome("error while copying out",
                () -> manager.copyOut("copy (select 1 / (50 - id) from items) to stdout", new ByteArrayOutputStream()));
            notes.note("after that", value(session, "select ?::int4", 1));
            notes.outcome("no such table", () -> manager.copyIn("copy no_such_table from stdin", stream("1\n")));
            query(session, "delete from " + table);
        }
    }

    static ByteArrayInputStream stream(String text) {
        return new ByteArrayInputStream(text.getBytes(StandardCharsets.UTF_8));
    }

    void cancel(Notes notes) throws Exception {
        try (Connection session = open()) {
            for (int turn = 0; turn < 2; turn++) {
                notes.outcome("cancelled, turn " + turn, () -> cancelled(session));
                notes.note("after it, turn " + turn, value(session, "select ?::int4", turn));
            }
            notes.outcome("in a transaction", () -> inTransaction(session, () -> cancelled(session)));
            notes.note("after the transaction", value(session, "select ?::int4", 1));
        }
    }

    static Object cancelled(Connection session) throws Exception {
        try (PreparedStatement statement = session.prepareStatement("select pg_sleep(30)")) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(400);
                    statement.cancel();
                } catch (SQLException | InterruptedException error) {
                    throw new IllegalStateException(error);
                }
            });
            canceller.start();
            try {
                return run(statement);
            } finally {
                canceller.join();
            }
        }
    }

    void notifications(Notes notes) throws Exception {
        String channel = "channel_" + notes.worker;
        try (Connection listener = open(); Connection sender = open()) {
            query(listener, "listen " + channel);
            for (int n = 0; n < 3; n++) query(sender, "select pg_notify(?, ?)", channel, "message " + n);
            notes.note("received", received(listener, 3, 5000));
            inTransaction(sender, () -> query(sender, "notify " + channel + ", 'with the commit'"));
            notes.note("committed", received(listener, 1, 5000));
            for (int n = 0; n < 5; n++) notes.note("query meanwhile " + n, value(listener, "select ?::int4", n));
            query(sender, "notify " + channel + ", 'after queries'");
            notes.note("after queries", received(listener, 1, 5000));
            query(listener, "unlisten *");
            query(sender, "notify " + channel + ", 'unheard'");
            notes.note("after unlisten", received(listener, 1, 300));
        }
    }

    static List<String> received(Connection listener, int count, int milliseconds) throws SQLException {
        List<String> found = new ArrayList<>();
        long end = System.currentTimeMillis() + milliseconds;
        while (found.size() < count && System.currentTimeMillis() < end) {
            PGNotification[] some = listener.unwrap(PGConnection.class).getNotifications(50);
            if (some != null) for (PGNotification one : some) found.add(one.getName() + " " + one.getParameter());
        }
        return found;
    }

    void tls(Notes notes) throws Exception {
        try (Connection session = open(secure, Map.of("sslmode", "require"))) {
            notes.note("required", value(session, "select ?::int4", 1));
        }
        String ca = System.getenv("DRIVERS_CA");
        try (Connection session = open(secure, Map.of("sslmode", "verify-full", "sslrootcert", ca))) {
            notes.note("verified", value(session, "select ?::int4", 1));
            notes.note("much", value(session, "select repeat('x', 3000000)").length());
            notes.outcome("an error", () -> query(session, "select 1 / 0"));
            notes.outcome("cancelled", () -> cancelled(session));
            notes.note("afterwards", value(session, "select ?::int4", 2));
        }
        String wrong = System.getenv("DRIVERS_WRONG_CA");
        notes.outcome("another authority", () -> open(secure, Map.of("sslmode", "verify-full", "sslrootcert", wrong)));
    }

    void settings(Notes notes) throws Exception {
        String zone = ZONES[notes.worker];
        try (Connection session = open()) {
            String start = value(session, "show timezone");
            query(session, "set timezone to '" + zone + "'");
            query(session, "set work_mem to '" + (11 + notes.worker) + "MB'");
            for (int n = 0; n < 6; n++) {
                notes.note("set " + n, value(session, "show timezone") + " " + value(session, "show work_mem"));
            }
            notes.outcome("set and roll back", () -> inTransaction(session, () -> {
                query(session, "set work_mem to '88MB'");
                return query(session, "select 1 / 0");
            }));
            notes.note("after rolling back", value(session, "show work_mem"));
            query(session, "reset work_mem");
            query(session, "reset timezone");
            notes.note("reset", value(session, "show work_mem") + " " + value(session, "show timezone").equals(start));
            session.setSchema("own_" + notes.worker);
            for (int n = 0; n < 8; n++) notes.note("schema " + n, value(session, "select whose()"));
            session.setSchema("public");
            notes.note("schema again", value(session, "select whose()"));
            query(session, "create temp table mine (a int4)");
            query(session, "insert into mine values (?)", notes.worker);
            for (int n = 0; n < 4; n++) notes.note("temporary table " + n, query(session, "select a from mine"));
            query(session, "drop table mine");
            int key = 3000 + notes.worker;
            query(session, "select pg_advisory_lock(" + key + ")");
            notes.note("locked", value(session, "select ?::int4", 1));
            notes.note("advisory lock", query(session, "select pg_advisory_unlock(" + key + ")"));
            query(session, "select hide_setting('worker " + notes.worker + "')");
            for (int n = 0; n < 4; n++) notes.note("hidden " + n, query(session, "select current_setting('my.hidden', true)"));
            notes.outcome("discard all", () -> query(session, "discard all"));
            for (int n = 0; n < 3; n++) notes.outcome("after discard all " + n, () -> value(session, "select ?::int4", 1));
        }
    }

    void pool(Notes notes) {
        throw new NotApplicable("Java's pools are libraries of their own");
    }

    void reconnect(Notes notes) throws Exception {
        try (Connection session = open(); Connection killer = open()) {
            notes.outcome("cut in a transaction", () -> inTransaction(session, () -> {
                String pid = value(session, "select pg_backend_pid()");
                query(killer, "select pg_terminate_backend(" + pid + ", 5000)");
                return query(session, "select 1");
            }));
            notes.note("valid", session.isValid(2));
        }
        try (Connection session = open()) {
            notes.note("a new connection", value(session, "select ?::int4", 1));
            notes.outcome("cut by its own query", () -> query(session, "select pg_terminate_backend(pg_backend_pid()), pg_sleep(5)"));
        }
        try (Connection session = open()) {
            notes.note("the last connection", value(session, "select ?::int4", 2));
        }
    }
}
