#!/usr/bin/perl
# Stands in for a service of Immich in tests: as `server` it does with database, markers and files what Immich's server does at its start, and answers
# its two questions that take no key; as `healthcheck` it asks that server; as `sleep` it only is there. All end on SIGTERM.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use POSIX qw(strftime);

$| = 1;
my $stop = 0;
$SIG{TERM} = sub { $stop = 1 };
$SIG{PIPE} = 'IGNORE';
my $role = shift // 'server';
my $port = $ENV{IMMICH_PORT} || 2283;

if ($role eq 'healthcheck') {
    my $line = asked('/api/server/ping');
    print "$line\n";
    exit($line =~ /pong/ ? 0 : 1);
}
if ($role eq 'sleep') {
    select(undef, undef, undef, 0.5) until $stop;
    leave();
}

my $media = $ENV{IMMICH_MEDIA_LOCATION} || $ENV{STAND_IN_MEDIA_LOCATION};
my @folders = qw(backups encoded-video library profile thumbs upload);

# The database: waited for, and made where it is empty, as Immich's migrations would.
until (defined query('SELECT 1')) {
    leave() if $stop;
    print "waiting for the database\n";
    select(undef, undef, undef, 0.3);
}
if ((query("SELECT to_regclass('public.system_metadata')") // '') eq '') {
    print "the database is empty: making tables\n";
    query('CREATE TABLE public.system_metadata (key text PRIMARY KEY, value jsonb NOT NULL); '
        . 'CREATE TABLE public.version_history (version text NOT NULL, "createdAt" timestamptz NOT NULL DEFAULT now())') // die "cannot make tables\n";
}

# The markers: a folder that had one must have it.
my $flags = query("SELECT value FROM system_metadata WHERE key = 'system-flags'") // '';
for my $folder (@folders) {
    my $marker = "$media/$folder/.immich";
    if ($flags =~ /"\Q$folder\E": true/ && !-e $marker) {
        die "Failed to read: \"<UPLOAD_LOCATION>/$folder/.immich\"\n";
    }
    mkdir "$media/$folder";
    open(my $file, '>', $marker) or die "Failed to write $marker: $!\n";
    print $file int(time * 1000);
    close $file;
}
my $checks = join ', ', map { "\"$_\": true" } @folders;
query("INSERT INTO system_metadata VALUES ('system-flags', '{\"mountChecks\": {$checks}}') ON CONFLICT (key) DO NOTHING");

# Somebody uploads, and does not come to the end.
my $upload = "$media/upload/00000000-0000-4000-8000-00000000000f";
mkdir $_ for $upload, "$upload/00", "$upload/00/00";
open(my $open, '>>', "$upload/00/00/00000000-0000-4000-8000-000000000001.mp4") or die "cannot write to the library: $!\n";
$open->autoflush(1);
my $every = $ENV{STAND_IN_WRITES_EVERY} // 1;
my $written = 0;

# The connections that Immich keeps.
open(my $connection, '|-', client()) or die "cannot start psql: $!\n";

my $listener = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $port, Listen => 16, ReuseAddr => 1) or die "cannot listen on $port: $@\n";
my $waiting = IO::Select->new($listener);
print "Immich Server is listening on $port\n";
until ($stop) {
    if ($every && time - $written >= $every) {
        print $open 'half of a video ' x 64;
        $written = time;
    }
    answer(scalar $listener->accept) if $waiting->can_read(0.2);
}
leave();

sub answer {
    my ($client) = @_ or return;
    return unless $client;
    $client->timeout(2);
    my $request = <$client> // '';
    while (defined(my $line = <$client>)) { last if $line =~ /^\r?\n$/ }
    my ($status, $body) = ('404 Not Found', '{"message":"Cannot GET that","statusCode":404}');
    ($status, $body) = ('200 OK', '{"res":"pong"}') if $request =~ m{^GET /api/server/ping };
    if ($request =~ m{^GET /api/server/version } && ($ENV{STAND_IN_VERSION} // '') =~ /^v?(\d+)\.(\d+)\.(\d+)/) {
        ($status, $body) = ('200 OK', "{\"major\":$1,\"minor\":$2,\"patch\":$3}");
    }
    print $client "HTTP/1.1 $status\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
    close $client;
}

sub asked {
    my ($path) = @_;
    my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 2) or return "nobody listens on $port";
    print $server "GET $path HTTP/1.0\r\n\r\n";
    local $/;
    return <$server> // '';
}

sub client {
    $ENV{PGPASSWORD} = $ENV{DB_PASSWORD};
    $ENV{PGCONNECT_TIMEOUT} = 3;
    return ('psql', '-X', '-A', '-t', '-q', '-h', $ENV{DB_HOSTNAME} || 'database', '-p', $ENV{DB_PORT} || 5432, '-U', $ENV{DB_USERNAME} || 'postgres',
        '-d', $ENV{DB_DATABASE_NAME} || 'immich');
}

# What the database answers; undef if it does not.
sub query {
    my ($sql) = @_;
    open(my $answer, '-|', client(), '-c', $sql) or return undef;
    my $text = join '', <$answer>;
    close $answer or return undef;
    chomp $text;
    return $text;
}

# Some take their time.
sub leave {
    my $until = time + ($ENV{STAND_IN_STOP_SECONDS} || 0);
    while (time < $until) { select(undef, undef, undef, 0.1) }
    print "ended\n";
    # Without waiting for psql: the database may be gone.
    POSIX::_exit(0);
}
