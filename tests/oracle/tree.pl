# Lists a whole tree: a line for each path with its mode, owner, kind (size, target, device), the first path of its group
# of hard links, and extended attributes; then the SHA-256 of each file. /proc, /sys and /dev are named and not entered.
use strict;
use Fcntl ':mode';
# llistxattr and lgetxattr: asm/unistd_64.h and asm-generic/unistd.h.
my ($list, $get) = `uname -m` =~ /x86_64/ ? (195, 192) : (12, 9);
my (%first, @files);

sub xattrs {
    my ($path) = @_;
    my $names = "\0" x 65536;
    my $size = syscall($list, $path, $names, 65536);
    return '' if $size <= 0;
    return join ' ', map {
        my ($name, $value) = ($_, "\0" x 65536);
        my $length = syscall($get, $path, $name, $value, 65536);
        $name . '=' . ($length < 0 ? "?$!" : unpack('H*', substr $value, 0, $length));
    } sort split /\0/, substr $names, 0, $size;
}

sub visit {
    my ($path) = @_;
    my @stat = lstat $path or return;
    my ($device, $inode, $mode, $links, $uid, $gid, $number, $size) = @stat;
    my $what = S_ISLNK($mode) ? 'link ' . readlink $path
        : S_ISREG($mode) ? "file $size"
        : S_ISDIR($mode) ? 'directory'
        : sprintf('special %o %d', S_IFMT($mode), $number);
    my $group = '';
    if (!S_ISDIR($mode) && $links > 1) {
        $first{"$device:$inode"} //= $path;
        $group = 'same as ' . $first{"$device:$inode"};
    }
    printf "%s\t%04o %d:%d %s\t%s\t%s\n", $path, S_IMODE($mode), $uid, $gid, $what, $group, xattrs($path);
    push @files, $path if S_ISREG($mode);
    return if !S_ISDIR($mode) || $path =~ m{^/(proc|sys|dev)$};
    opendir(my $directory, $path) or return;
    for (sort readdir $directory) {
        visit(($path eq '/' ? '' : $path) . "/$_") unless /^\.\.?$/;
    }
}

$| = 1;
visit('/');
open(my $pipe, '|-', 'xargs -0 sha256sum') or die;
print $pipe "$_\0" for @files;
close $pipe;
