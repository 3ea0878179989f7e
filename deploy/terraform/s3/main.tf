# A bucket for one repository, a writer that can neither overwrite nor delete, and a pruner that may remove what `prune` removes.

provider "aws" {
  region = var.region

  default_tags {
    tags = var.tags
  }
}

locals {
  # How keys of the repository begin in the bucket, and as resources of a policy.
  root    = var.prefix == "" ? "" : "${var.prefix}/"
  objects = "${aws_s3_bucket.repository.arn}/${local.root}"

  # Where originals lie; moves by prefix know no better than this.
  originals = ["config/", "external/", "library/library/", "library/profile/", "library/upload/"]

  # What `prune` removes, and `prune --derived`. Not the log, not format.json, no original.
  prunable         = ["database/", "manifests/"]
  prunable_derived = ["library/encoded-video/", "library/thumbs/", "versions/encoded-video/", "versions/thumbs/"]
  removed          = concat(local.prunable, var.prune_derived ? local.prunable_derived : [])

  # A motion photo's video lies among the transcoded ones, and Immich cannot make it again.
  kept_suffix = "-MP.mp4"
}

resource "aws_s3_bucket" "repository" {
  # checkov:skip=CKV_AWS_18: access logs need another bucket; turn on CloudTrail data events where an audit is wanted
  # checkov:skip=CKV_AWS_19: it is, either way: checkov does not work out the condition of sse_algorithm
  # checkov:skip=CKV_AWS_144: a copy in another region doubles the cost; keep the second copy elsewhere, by any copy tool
  # checkov:skip=CKV_AWS_145: SSE-S3 by default, a key of one's own by kms_key_arn
  # checkov:skip=CKV2_AWS_62: nobody waits for events; the program itself says what it did
  bucket              = var.bucket
  force_destroy       = false
  object_lock_enabled = true

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "repository" {
  bucket                  = aws_s3_bucket.repository.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "repository" {
  bucket = aws_s3_bucket.repository.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

# Object Lock asks for it, and it is what a removal leaves to bring back.
resource "aws_s3_bucket_versioning" "repository" {
  bucket = aws_s3_bucket.repository.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "repository" {
  bucket = aws_s3_bucket.repository.id

  rule {
    bucket_key_enabled = var.kms_key_arn != ""

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == "" ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn == "" ? null : var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_object_lock_configuration" "repository" {
  count = var.object_lock_days > 0 ? 1 : 0

  bucket     = aws_s3_bucket.repository.id
  depends_on = [aws_s3_bucket_versioning.repository]

  rule {
    default_retention {
      mode = var.object_lock_mode
      days = var.object_lock_days
    }
  }
}

# No rule removes a current version: the log names each object, and what it names and nobody finds is damage. `prune` says it in the log first,
# and these rules clear away what it left.
resource "aws_s3_bucket_lifecycle_configuration" "repository" {
  # checkov:skip=CKV_AWS_300: the first rule does it: checkov sees no rules where one of them is dynamic
  bucket     = aws_s3_bucket.repository.id
  depends_on = [aws_s3_bucket_versioning.repository]

  rule {
    id     = "uploads-that-were-never-ended"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  rule {
    id     = "what-was-removed"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.removed_kept_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  dynamic "rule" {
    for_each = var.move_originals_after_days == null ? [] : local.originals
    content {
      id     = "move-${trimsuffix(replace(rule.value, "/", "-"), "-")}"
      status = "Enabled"

      filter {
        prefix = "${local.root}${rule.value}"
      }

      transition {
        days          = var.move_originals_after_days
        storage_class = var.storage_class
      }
    }
  }
}
