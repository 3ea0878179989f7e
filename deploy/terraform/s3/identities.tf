# Who may do what.

# For everybody, the account's administrators included: nothing is overwritten, nothing goes unencrypted.
data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "NeverOverwrite"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = ["${local.objects}*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    # The parts of an upload are no object yet; the request that puts them together has the condition.
    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }
    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }

  statement {
    sid       = "OnlyByTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.repository.arn, "${aws_s3_bucket.repository.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "repository" {
  bucket     = aws_s3_bucket.repository.id
  policy     = data.aws_iam_policy_document.bucket.json
  depends_on = [aws_s3_bucket_public_access_block.repository]
}

# As `immich-backup init --dry-run` prints it.
data "aws_iam_policy_document" "writer" {
  statement {
    sid       = "CreateAndRead"
    actions   = ["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"]
    resources = ["${local.objects}*"]
  }

  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.repository.arn]

    # To look at one key is no listing, and has no prefix: without `IfExists` a key that is not there would be answered with 403.
    dynamic "condition" {
      for_each = var.prefix == "" ? [] : ["${local.root}*"]
      content {
        test     = "StringLikeIfExists"
        variable = "s3:prefix"
        values   = [condition.value]
      }
    }
  }

  statement {
    sid       = "NeverOverwrite"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = ["${local.objects}*"]

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }
    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }

  dynamic "statement" {
    for_each = var.kms_key_arn == "" ? [] : [var.kms_key_arn]
    content {
      sid       = "Key"
      actions   = ["kms:GenerateDataKey", "kms:Decrypt"]
      resources = [statement.value]
    }
  }
}

# What it removes it writes to the log first. It may create where it may not remove, and the other way round. No version is ever its to remove.
data "aws_iam_policy_document" "pruner" {
  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = ["${local.objects}*"]
  }

  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.repository.arn]

    dynamic "condition" {
      for_each = var.prefix == "" ? [] : ["${local.root}*"]
      content {
        test     = "StringLikeIfExists"
        variable = "s3:prefix"
        values   = [condition.value]
      }
    }
  }

  statement {
    sid       = "Log"
    actions   = ["s3:PutObject"]
    resources = ["${local.objects}log/*", "${local.objects}format.json"]
  }

  statement {
    sid       = "Remove"
    actions   = ["s3:DeleteObject"]
    resources = [for prefix in local.removed : "${local.objects}${prefix}*"]
  }

  statement {
    sid       = "NoOriginal"
    effect    = "Deny"
    actions   = ["s3:DeleteObject"]
    resources = ["${local.objects}*${local.kept_suffix}", "${local.objects}*${local.kept_suffix}/*"]
  }

  statement {
    sid       = "NeverOverwrite"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = ["${local.objects}*"]

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }
    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }

  dynamic "statement" {
    for_each = var.kms_key_arn == "" ? [] : [var.kms_key_arn]
    content {
      sid       = "Key"
      actions   = ["kms:GenerateDataKey", "kms:Decrypt"]
      resources = [statement.value]
    }
  }
}

locals {
  # By the name of the Kubernetes service account that acts as it.
  policies = {
    "immich-backup"       = data.aws_iam_policy_document.writer.json
    "immich-backup-prune" = data.aws_iam_policy_document.pruner.json
  }
  names = {
    "immich-backup"       = var.name_prefix
    "immich-backup-prune" = "${var.name_prefix}-prune"
  }
  roles  = var.identity == "user" ? {} : local.names
  users  = var.identity == "user" ? local.names : {}
  issuer = try(one(regex("oidc-provider/(.+)$", var.oidc_provider_arn)), "")
}

data "aws_iam_policy_document" "trust" {
  for_each = local.roles

  dynamic "statement" {
    for_each = var.identity == "irsa" ? [var.oidc_provider_arn] : []
    content {
      actions = ["sts:AssumeRoleWithWebIdentity"]

      principals {
        type        = "Federated"
        identifiers = [statement.value]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:sub"
        values   = ["system:serviceaccount:${var.namespace}:${each.key}"]
      }
      condition {
        test     = "StringEquals"
        variable = "${local.issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.identity == "pod-identity" ? [var.cluster_name] : []
    content {
      actions = ["sts:AssumeRole", "sts:TagSession"]

      principals {
        type        = "Service"
        identifiers = ["pods.eks.amazonaws.com"]
      }

      condition {
        test     = "StringEquals"
        variable = "aws:RequestTag/eks-cluster-name"
        values   = [statement.value]
      }
      condition {
        test     = "StringEquals"
        variable = "aws:RequestTag/kubernetes-namespace"
        values   = [var.namespace]
      }
      condition {
        test     = "StringEquals"
        variable = "aws:RequestTag/kubernetes-service-account"
        values   = [each.key]
      }
    }
  }
}

resource "aws_iam_role" "pods" {
  for_each = local.roles

  name               = each.value
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

resource "aws_iam_role_policy" "pods" {
  for_each = local.roles

  name   = each.value
  role   = aws_iam_role.pods[each.key].name
  policy = local.policies[each.key]
}

resource "aws_eks_pod_identity_association" "pods" {
  for_each = var.identity == "pod-identity" ? local.roles : {}

  cluster_name    = var.cluster_name
  namespace       = var.namespace
  service_account = each.key
  role_arn        = aws_iam_role.pods[each.key].arn
}

resource "aws_iam_user" "keys" {
  # checkov:skip=CKV_AWS_273: a cluster that is not Amazon's has no other identity there; on EKS, irsa and pod-identity need no user
  for_each = local.users

  name = each.value
}

resource "aws_iam_user_policy" "keys" {
  # checkov:skip=CKV_AWS_40: two users with a policy each; a group of one would say no more
  for_each = local.users

  name   = each.value
  user   = aws_iam_user.keys[each.key].name
  policy = local.policies[each.key]
}
